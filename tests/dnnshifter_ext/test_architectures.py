"""The conversion is exact on real architectures and on generated graphs, at resolutions it has not seen."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
import torchvision

from dnnshifter_ext.conversion import convert
from dnnshifter_ext.verify import compare

EXACT = 1e-9

# One of each family, small; `make test-full` takes all of torchvision.
SOME = ['alexnet', 'densenet121', 'efficientnet_b0', 'googlenet', 'mnasnet0_5', 'mobilenet_v2', 'mobilenet_v3_small',
        'regnet_y_400mf', 'resnet18', 'resnet50', 'resnext50_32x4d', 'shufflenet_v2_x0_5', 'squeezenet1_1']
ALL = torchvision.models.list_models(module=torchvision.models)
FIXED_RESOLUTION = ('vit', 'swin', 'maxvit')


def make_sparse(model, generator, density=0.3, share_of_dead_filters=0.3):
    """Random masks, dead filters, batch-norm statistics, shifts and biases, all in float64."""
    model = model.eval().double()

    def random_like(tensor, scale, shift=0.0):
        return torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * scale + shift

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight *= torch.rand(module.weight.shape, generator=generator) < density
                module.weight[torch.rand(len(module.weight), generator=generator) < share_of_dead_filters] *= -0.0
                if module.bias is not None:
                    module.bias.copy_(random_like(module.bias, 0.1))
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(random_like(module.running_mean, 0.1))
                module.running_var.copy_(random_like(module.running_var, 0.2).abs() + 0.5)
                module.weight.copy_(random_like(module.weight, 1.0))
                module.bias.copy_(random_like(module.bias, 0.3))
    return model


def assert_exact(model, size, other_size, generator):
    images, other = (torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64)
                     for side in (size, other_size))
    conversion = convert(model, images)
    for inputs in (images, other):
        report = compare(model, conversion.model, inputs)
        assert report.within(EXACT) and report.changed_predictions == 0, report
    return conversion


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in SOME else pytest.mark.full) for name in ALL])
def test_torchvision(name):
    generator = torch.Generator().manual_seed(0)
    random_weights = {'init_weights': False} if name in ('googlenet', 'inception_v3') else {}
    model = make_sparse(torchvision.models.get_model(name, weights=None, **random_weights), generator)
    size = 224 if name.startswith(FIXED_RESOLUTION) else 96 if name == 'inception_v3' else 64
    other_size = size if name.startswith(FIXED_RESOLUTION) else size + 32
    conversion = assert_exact(model, size, other_size, generator)
    if name in SOME:
        assert conversion.plan.num_removed > 0


class Generated(nn.Module):
    """A random chain of the blocks below, each of which keeps the number of dimensions and the resolution even."""

    def __init__(self, seed):
        super().__init__()
        self.random = random.Random(seed)
        self.blocks = nn.ModuleList()
        channels = 3
        for _ in range(self.random.randint(3, 6)):
            block = self.random.choice(BLOCKS)(self.random, channels)
            self.blocks.append(block)
            channels = block.outputs
        self.heads = nn.ModuleList(nn.Linear(channels, 4) for _ in range(self.random.randint(1, 2)))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        outputs = [head(x) for head in self.heads]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class Plain(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.outputs = rng.choice([4, 6, 8])
        kernel = rng.choice([1, 3, 5])
        self.conv = nn.Conv2d(inputs, self.outputs, kernel, stride=rng.choice([1, 1, 2]), dilation=rng.choice([1, 2]),
                              padding=rng.choice([0, kernel // 2, kernel]), bias=rng.random() < 0.5,
                              padding_mode=rng.choice(['zeros', 'zeros', 'reflect', 'replicate', 'circular'])
                              if kernel > 1 else 'zeros')
        self.bn = nn.BatchNorm2d(self.outputs) if rng.random() < 0.6 else nn.Identity()
        self.act = rng.choice([nn.ReLU(inplace=True), nn.SiLU(), nn.Hardswish(), nn.PReLU(), nn.PReLU(self.outputs),
                               nn.Sigmoid(), nn.Identity()])
        self.pool = rng.choice([nn.Identity(), nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1),
                                nn.AvgPool2d(3, 1, 1, count_include_pad=False), nn.ZeroPad2d(1)])

    def forward(self, x):
        return self.pool(self.act(self.bn(self.conv(F.interpolate(x, size=(13, 11))))))


class Residual(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.outputs = rng.choice([inputs, 6])
        self.bn = nn.BatchNorm2d(inputs)
        self.first = nn.Conv2d(inputs, 6, 3, padding=1, bias=False)
        self.second = nn.Conv2d(6, self.outputs, 3, padding=1)
        self.shortcut = nn.Identity() if self.outputs == inputs else nn.Conv2d(inputs, self.outputs, 1)
        self.relu = nn.ReLU(inplace=rng.random() < 0.5)  # one module, called several times

    def forward(self, x):
        out = self.second(self.relu(self.first(F.relu(self.bn(x)))))
        out += self.shortcut(x)
        return self.relu(out)


class Dense(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, rng.choice([2, 3]), 3, padding=1) for _ in range(2))
        self.outputs = inputs + sum(branch.out_channels for branch in self.branches)

    def forward(self, x):
        return torch.cat([x, *(F.relu(branch(x)) for branch in self.branches)], 1)


class Grouped(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.widen = nn.Conv2d(inputs, 8, 1)
        groups = rng.choice([2, 4, 8])
        self.grouped = nn.Conv2d(8, rng.choice([8, 16]), 3, padding=rng.choice([0, 1]), groups=groups)
        self.outputs = self.grouped.out_channels

    def forward(self, x):
        return F.relu6(self.grouped(F.relu6(self.widen(F.interpolate(x, size=(9, 9))))))


class SqueezeExcite(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.outputs = inputs
        self.down, self.up = nn.Conv2d(inputs, 3, 1), nn.Conv2d(3, inputs, 1)
        self.scale = nn.Parameter(torch.rand(inputs, 1, 1) + 0.5)

    def forward(self, x):
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        return x * gate * self.scale


class SplitAndShuffle(nn.Module):
    def __init__(self, rng, inputs):
        super().__init__()
        self.enter = nn.Conv2d(inputs, 8, 1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.outputs = 8

    def forward(self, x):
        first, second = self.enter(x).chunk(2, dim=1)
        x = torch.cat((first, F.relu(self.conv(second))), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class Shared(nn.Module):
    """One convolution, called twice: its channels stay."""

    def __init__(self, rng, inputs):
        super().__init__()
        self.outputs = inputs
        self.conv = nn.Conv2d(inputs, inputs, 3, padding=1)

    def forward(self, x):
        return self.conv(F.relu(self.conv(x))) - x


BLOCKS = [Plain, Plain, Residual, Residual, Dense, Grouped, SqueezeExcite, SplitAndShuffle, Shared]


@pytest.mark.parametrize('seed', [
    pytest.param(seed, marks=() if seed < 60 else pytest.mark.full) for seed in range(600)])
def test_generated_graphs(seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    density, share = random.Random(seed).choice([(0.9, 0.1), (0.9, 0.3), (0.5, 0.2), (1.0, 0.6), (0.1, 0.0)])
    model = make_sparse(Generated(seed), generator, density, share)
    conversion = assert_exact(model, 16, 21, generator)
    assert num_params(conversion.model) <= num_params(conversion.fused)
    assert all(parameter.numel() for parameter in conversion.model.parameters()), 'a layer without channels'


def num_params(model):
    return sum(parameter.numel() for parameter in model.parameters())
