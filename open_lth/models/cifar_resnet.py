"""Residual networks for CIFAR-10 (He et al., 2015, section 4.2): cifar_resnet_N[_W], N layers of width W (16)."""

import torch
from torch import nn
import torch.nn.functional as F

from open_lth.models import base, names
from open_lth.models.cifar_vgg import CIFAR_TRAINING


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, in_channels, out_channels, downsample=False):
        super().__init__()
        stride = 2 if downsample else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if downsample:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=2, bias=False),
                nn.BatchNorm2d(out_channels))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class Model(base.Model):
    def __init__(self, width, blocks_per_segment, initializer, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(3, width, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        blocks, channels = [], width
        for segment, out_channels in enumerate((width, 2 * width, 4 * width)):
            for i in range(blocks_per_segment):
                blocks.append(Block(channels, out_channels, downsample=segment > 0 and i == 0))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels, outputs)
        self.criterion = nn.CrossEntropyLoss()
        self.apply(initializer)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        x = F.avg_pool2d(x, x.size(3))
        return self.fc(torch.flatten(x, 1))

    @property
    def output_layer_names(self):
        return ['fc.weight', 'fc.bias']

    @property
    def loss_criterion(self):
        return self.criterion

    @staticmethod
    def is_valid_model_name(model_name):
        sizes = names.numbers(model_name, 'cifar_resnet')
        return sizes is not None and len(sizes) in (1, 2) and sizes[0] > 2 and (sizes[0] - 2) % 6 == 0

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        if not Model.is_valid_model_name(model_name):
            raise ValueError(f'invalid model name: {model_name}')
        depth, *width = names.numbers(model_name, 'cifar_resnet')
        return Model(width[0] if width else 16, (depth - 2) // 6, initializer, outputs or 10)

    @staticmethod
    def default_hparams():
        return base.default_desc('cifar10', 128, 'cifar_resnet_20', CIFAR_TRAINING)
