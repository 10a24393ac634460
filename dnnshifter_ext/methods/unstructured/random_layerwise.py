"""Random pruning with the same density in every layer, where plain random pruning has it on average only."""

from __future__ import annotations

import torch

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores import random


def score(model: Model, mask: Mask, setting: Setting) -> dict[str, torch.Tensor]:
    """The rank of a uniform random number among those of the layer's alive weights, as a fraction in (0, 1).

    A threshold on the fraction is the same quantile of each layer: densities differ by less than one weight.
    """
    draws = random.score(model, setting.batches, seed=setting.seed)
    return {name: _quantiles(draws[name], keep.cpu() != 0) for name, keep in mask.items()}


def _quantiles(values: torch.Tensor, alive: torch.Tensor) -> torch.Tensor:
    quantiles = torch.zeros_like(values, dtype=torch.float64)
    num_alive = int(alive.sum())
    rank = torch.empty(num_alive, dtype=torch.float64)
    rank[values[alive].argsort(stable=True)] = torch.arange(num_alive, dtype=torch.float64)
    quantiles[alive] = (rank + 0.5) / num_alive
    return quantiles
