"""VGG for CIFAR-10 (Simonyan & Zisserman, 2014, with batch norm): cifar_vgg_{5,11,13,16,19}."""

import torch
from torch import nn
import torch.nn.functional as F

from open_lth.models import base, names

# Out-channels of the convolutions; 'M' is a 2x2 max pool.
PLANS = {
    5: [64, 'M', 128, 'M', 256, 'M', 512, 'M', 512],
    11: [64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512],
    13: [64, 64, 'M', 128, 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512],
    16: [64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M', 512, 512, 512],
    19: [64, 64, 'M', 128, 128, 'M', *[256] * 4, 'M', *[512] * 4, 'M', *[512] * 4],
}


class ConvModule(nn.Module):
    """3x3 convolution with bias, batch norm, ReLU."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Model(base.Model):
    def __init__(self, plan, initializer, outputs=10):
        super().__init__()
        layers, channels = [], 3
        for entry in plan:
            if entry == 'M':
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers.append(ConvModule(channels, entry))
                channels = entry
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, outputs)
        self.criterion = nn.CrossEntropyLoss()
        self.apply(initializer)

    def forward(self, x):
        x = F.avg_pool2d(self.layers(x), 2)
        return self.fc(torch.flatten(x, 1))

    @property
    def output_layer_names(self):
        return ['fc.weight', 'fc.bias']

    @property
    def loss_criterion(self):
        return self.criterion

    @staticmethod
    def is_valid_model_name(model_name):
        depth = names.numbers(model_name, 'cifar_vgg')
        return depth is not None and len(depth) == 1 and depth[0] in PLANS

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        if not Model.is_valid_model_name(model_name):
            raise ValueError(f'invalid model name: {model_name}')
        [depth] = names.numbers(model_name, 'cifar_vgg')
        return Model(PLANS[depth], initializer, outputs or 10)

    @staticmethod
    def default_hparams():
        return base.default_desc('cifar10', 128, 'cifar_vgg_16', CIFAR_TRAINING,
                                 dict(pruning_layers_to_ignore='fc.weight'))


# He et al. (2015), section 4.2, as OpenLTH trains its CIFAR models.
CIFAR_TRAINING = dict(lr=0.1, training_steps='160ep', momentum=0.9, milestone_steps='80ep,120ep', gamma=0.1,
                      weight_decay=1e-4)
