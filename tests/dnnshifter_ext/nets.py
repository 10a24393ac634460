"""Small networks with hand-made sparsity for the tests of the converter."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from dnnshifter_ext.fuse import fuse_conv_bn
from dnnshifter_ext.graph import capture, trace_shapes
from dnnshifter_ext.structure import structure_of


class LeNet(nn.Module):
    """Fully connected, as OpenLTH's MNIST models: inputs of 1x6x6."""

    def __init__(self, widths=(20, 15), outputs=10):
        super().__init__()
        sizes = (36, *widths)
        self.fc_layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, widths))
        self.fc = nn.Linear(widths[-1], outputs)

    def forward(self, x):
        x = x.view(x.size(0), -1)
        for layer in self.fc_layers:
            x = F.relu(layer(x))
        return self.fc(x)


class VGG(nn.Module):
    """Conv, batch norm, relu; pools between; average pool, flatten, linear. Inputs of 3xNxN."""

    class Block(nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            self.bn = nn.BatchNorm2d(outputs)

        def forward(self, x):
            return F.relu(self.bn(self.conv(x)))

    def __init__(self, plan=(8, 'M', 12, 16, 'M', 16), outputs=10):
        super().__init__()
        layers, channels = [], 3
        for entry in plan:
            if entry == 'M':
                layers.append(nn.MaxPool2d(2, 2))
            else:
                layers.append(self.Block(channels, entry))
                channels = entry
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, outputs)
        self.criterion = nn.CrossEntropyLoss()  # in every OpenLTH model, and no part of the computation

    def forward(self, x):
        x = F.adaptive_avg_pool2d(self.layers(x), 1)
        return self.fc(x.view(x.size(0), -1))


class FlatteningNet(nn.Module):
    """Convolutions, then a linear layer that sees every position: 4 per channel for inputs of 3x8x8."""

    def __init__(self, activation=nn.ReLU, width=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), activation(), nn.MaxPool2d(2),
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), activation(), nn.AvgPool2d(2))
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * width, 12), activation(),
                                        nn.Linear(12, 5))

    def forward(self, x):
        return self.classifier(self.features(x))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                                          nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet's layout, two blocks. Inputs of 3xNxN."""

    def __init__(self, width=8, outputs=10):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(ResidualBlock(width, width), ResidualBlock(width, 2 * width, 2))
        self.fc = nn.Linear(2 * width, outputs)

    def forward(self, x):
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        x = F.avg_pool2d(x, x.size(3))
        return self.fc(torch.flatten(x, 1))


class Pair(nn.Module):
    """Two convolutions with something between them; the keywords go to the second one."""

    def __init__(self, channels=6, activation: Callable = F.relu, first=None, **second):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, **(first or {}))
        self.conv2 = nn.Conv2d(channels, 4, **({'kernel_size': 3} | second))
        self.activation = activation

    def forward(self, x):
        return self.conv2(self.activation(self.conv1(x)))


def sparsify(
    model: nn.Module, seed: int = 0, density: float = 0.2, share_of_dead_filters: float = 0.3,
) -> nn.Module:
    """The model with random masks multiplied in, some filters all zero, and random batch norms and biases.

    Multiplying leaves negative zeros, as in real checkpoints. Batch norm shifts and biases have both signs.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor, low, high):
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                mask = torch.rand(module.weight.shape, generator=generator) < density
                dead = torch.rand(len(mask), generator=generator) < share_of_dead_filters
                mask[dead] = False
                module.weight.mul_(mask)
                if module.bias is not None:
                    uniform(module.bias, -1, 1)
            elif isinstance(module, nn.BatchNorm2d):
                uniform(module.weight, -1, 1)
                uniform(module.bias, -1, 1)
                uniform(module.running_mean, -1, 1)
                uniform(module.running_var, 0.5, 1.5)
    return model.eval()


def num_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def images(size: int = 8, channels: int = 3, num: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, channels, size, size, generator=torch.Generator().manual_seed(seed))


def max_difference(first: nn.Module, second: nn.Module, x: torch.Tensor) -> float:
    """max |first(x) - second(x)| in float64 arithmetic of models that are already float64."""
    with torch.no_grad():
        return float((first(x.double()) - second(x.double())).abs().max())


def fused_and_structure(model, x=None):
    """(fused graph, its structure) of a model; x may be left out for a model from here."""
    captured = capture(model)
    fused = fuse_conv_bn(captured)
    return fused, structure_of(fused, trace_shapes(captured, [inputs_of(model) if x is None else x]))


def inputs_of(model):
    """One image that the model accepts."""
    return torch.zeros(1, 1, 6, 6) if isinstance(model, LeNet) else torch.zeros(1, 3, 8, 8)
