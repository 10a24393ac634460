"""What a score may look at besides the network and its mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn


def reset_parameters(model: nn.Module) -> None:
    """Draws every parameter anew from torch's default distribution of its layer, from the global generator."""
    for module in model.modules():
        if hasattr(module, 'reset_parameters'):
            module.reset_parameters()


@dataclass(frozen=True)
class Setting:
    """batches: mini-batches (inputs, labels) of the training set, on the model's device.

    seed: of everything the score draws. initialise: draws new weights into a model, in place, from the distribution
    that its own came from, out of torch's global generator.
    """

    batches: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
    seed: int = 0
    initialise: Callable[[nn.Module], None] = reset_parameters
