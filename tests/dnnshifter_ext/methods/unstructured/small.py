"""Networks of a few hundred weights, and what a score may look at."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.pruning.mask import Mask


class Network(nn.Sequential):
    """What the pipeline asks of a model: its prunable layers and its loss."""

    def __init__(self, *layers, loss=F.cross_entropy):
        super().__init__(*layers)
        self.loss_criterion = loss

    @property
    def prunable_layer_names(self):
        return [f'{name}.weight' for name, module in self.named_modules()
                if isinstance(module, (nn.Conv2d, nn.Linear))]


def convnet(seed=0):
    """Two convolutions with batch norm and a linear layer: 54 + 216 + 40 weights, for images of 2x6x6."""
    torch.manual_seed(seed)
    return Network(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 8, 3, bias=False),
                   nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def perceptron(*sizes, seed=0, bias=False, activation=nn.ReLU, loss=F.cross_entropy):
    """Linear layers with activations in between, in float64."""
    torch.manual_seed(seed)
    layers = []
    for inputs, outputs in zip(sizes, sizes[1:]):
        layers += [nn.Linear(inputs, outputs, bias=bias), activation()]
    return Network(*layers[:-1], loss=loss).double()


def setting(*shape, num_batches=4, num_classes=5, seed=0, dtype=torch.float32):
    """Random inputs of this shape (the batch comes first) with random labels."""
    generator = torch.Generator().manual_seed(seed)
    return Setting([(torch.randn(*shape, generator=generator, dtype=dtype),
                     torch.randint(num_classes, shape[:1], generator=generator)) for _ in range(num_batches)], seed)


def ones(model):
    return Mask.ones_like(model)


def masked(model, mask):
    """A copy with the mask multiplied in, which need not be of zeros and ones."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, keep in mask.items():
            model.get_parameter(name).mul_(keep)
    return model


def flat(scores):
    return torch.cat([scores[name].double().flatten() for name in sorted(scores)])
