"""Residual networks for ImageNet (He et al., 2015), built from torchvision's: imagenet_resnet_D[_W]."""

from torch import nn
import torchvision
from torchvision.models.resnet import BasicBlock, Bottleneck

from open_lth.models import base, names

_BLOCKS = {
    18: (BasicBlock, [2, 2, 2, 2]),
    34: (BasicBlock, [3, 4, 6, 3]),
    50: (Bottleneck, [3, 4, 6, 3]),
    101: (Bottleneck, [3, 4, 23, 3]),
    152: (Bottleneck, [3, 8, 36, 3]),
    200: (Bottleneck, [3, 24, 36, 3]),
}


class ResNet(torchvision.models.ResNet):
    """torchvision's network with a first width other than 64; its layer builder and forward are used as they are."""

    def __init__(self, block, layers, num_classes=1000, width=64, small_images=False):
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d
        self.groups, self.base_width, self.dilation = 1, 64, 1
        self.inplanes = width
        if small_images:
            self.conv1 = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(3, width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.layer1 = self._make_layer(block, width, layers[0])
        self.layer2 = self._make_layer(block, 2 * width, layers[1], stride=2)
        self.layer3 = self._make_layer(block, 4 * width, layers[2], stride=2)
        self.layer4 = self._make_layer(block, 8 * width, layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * width * block.expansion, num_classes)

        # torchvision's own initialization: overwritten later, but its draws are part of every seeded run.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)


class Model(base.Model):
    """A ResNet in the attribute `model`."""

    _PREFIXES = ('imagenet_resnet',)

    def __init__(self, model, initializer):
        super().__init__()
        self.model = model
        self.criterion = nn.CrossEntropyLoss()
        self.apply(initializer)

    def forward(self, x):
        return self.model(x)

    @property
    def output_layer_names(self):
        return ['model.fc.weight', 'model.fc.bias']

    @property
    def loss_criterion(self):
        return self.criterion

    @classmethod
    def _sizes(cls, model_name):
        """[depth] or [depth, width]; None for a name of another family."""
        for prefix in cls._PREFIXES:
            sizes = names.numbers(model_name, prefix)
            if sizes is not None and len(sizes) in (1, 2) and sizes[0] in _BLOCKS:
                return sizes
        return None

    @classmethod
    def is_valid_model_name(cls, model_name):
        return cls._sizes(model_name) is not None

    @classmethod
    def get_model_from_name(cls, model_name, initializer, outputs=None):
        if not cls.is_valid_model_name(model_name):
            raise ValueError(f'invalid model name: {model_name}')
        depth, *width = cls._sizes(model_name)
        block, layers = _BLOCKS[depth]
        network = ResNet(block, layers, num_classes=outputs or 1000, width=width[0] if width else 64,
                         small_images='modifiedresnet' in model_name)
        return cls(network, initializer)

    @staticmethod
    def default_hparams():
        return base.default_desc('imagenet', 1024, 'imagenet_resnet_50', dict(
            lr=0.4, training_steps='90ep', momentum=0.9, milestone_steps='30ep,60ep,80ep', gamma=0.1,
            warmup_steps='5ep', weight_decay=1e-4))
