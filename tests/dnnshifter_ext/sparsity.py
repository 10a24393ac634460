"""Random sparse weights in float64, for the tests of equality."""

# O = output channels, I = input channels of a group, K = taps of a kernel

from __future__ import annotations

from dataclasses import dataclass
import math

import torch
from torch import nn


@dataclass(frozen=True)
class Sparsity:
    """How the weights of each layer are masked.

    density: share of the weights that stay. dead_filters, dead_inputs: shares of its outputs and inputs that are masked
    as a whole. lone_taps: share of its kernels of which only one weight stays, the others masked.
    """

    density: float = 0.3
    dead_filters: float = 0.3
    dead_inputs: float = 0.0
    lone_taps: float = 0.0
    seed: int = 0


def make_sparse(model: nn.Module, sparsity: Sparsity) -> nn.Module:
    """The model in float64 and evaluation mode: all its numbers at random, its convolutions and linear layers sparse.

    Masks leave negative zeros. A fifth of the scales of batch norms is exactly 0; scales, shifts and biases have both
    signs.
    """
    generator = torch.Generator().manual_seed(sparsity.seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            is_layer = isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
            for name, tensor in module.named_parameters(recurse=False):
                tensor.normal_(std=0.3 if name == 'bias' else 1, generator=generator)
                if tensor.ndim > 1:
                    tensor /= math.sqrt(tensor[0].numel() if is_layer else tensor.shape[-1])
                if is_layer and name == 'weight':
                    _mask(tensor.view(*tensor.shape[:2], -1), sparsity, generator)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                if module.running_mean is not None:
                    module.running_mean.normal_(std=0.3, generator=generator)
                    module.running_var.uniform_(0.5, 1.5, generator=generator)
                if module.weight is not None:
                    module.weight *= torch.rand(len(module.weight), generator=generator) >= 0.2
    return model


def _mask(weight_OIK: torch.Tensor, sparsity: Sparsity, generator: torch.Generator) -> None:
    def survives(share_dead: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) >= share_dead

    num_outputs, num_inputs, num_taps = weight_OIK.shape
    alive = sparsity.density * (1 - sparsity.dead_filters) * (1 - sparsity.dead_inputs)
    weight_OIK *= math.sqrt(2 / max(alive, 0.1))  # about as much comes out as goes in
    weight_OIK *= survives(1 - sparsity.density, *weight_OIK.shape)
    weight_OIK *= survives(sparsity.dead_filters, num_outputs, 1, 1)
    weight_OIK *= survives(sparsity.dead_inputs, num_inputs, 1)
    if sparsity.lone_taps:
        kept_OI1 = torch.randint(num_taps, (num_outputs, num_inputs, 1), generator=generator)
        weight_OIK *= survives(sparsity.lone_taps, num_outputs, num_inputs, 1) | (torch.arange(num_taps) == kept_OI1)
