"""Which weights go: those of the lowest scores of all layers together, counted exactly."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from open_lth.pruning.mask import Mask
from open_lth.utils.tensor_utils import unvectorize, vectorize


def select(scores: Mapping[str, torch.Tensor], mask: Mapping[str, torch.Tensor], num_remove: int) -> Mask:
    """The mask without the num_remove alive weights of the lowest scores.

    Equal scores go by position, layers in the order of their names: the result is that of a stable sort. Pruned weights
    stay pruned, whatever their score. Raises ValueError when so many are not alive, or when a score is not a number.
    """
    keep = vectorize(mask) != 0
    values = vectorize({name: scores[name] for name in mask}).to(keep.device)[keep]
    if not 0 <= num_remove <= len(values):
        raise ValueError(f'cannot prune {num_remove} of {len(values)} remaining weights')
    if values.isnan().any():
        bad = [name for name in mask if scores[name].to(keep.device)[mask[name] != 0].isnan().any()]
        raise ValueError(f'the scores of {", ".join(bad)} are not numbers (NaN)')
    if num_remove:
        # The k-th smallest value in linear time; sorting 15 million takes 8 times as long.
        threshold = values.kthvalue(num_remove).values
        goes = values < threshold
        ties = (values == threshold).nonzero().squeeze(1)
        goes[ties[:num_remove - int(goes.sum())]] = True
        keep[keep.clone()] = ~goes
    return Mask(unvectorize(keep.float(), mask))


def empty_layers(mask: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of the layers with no weight left: nothing flows through them any more (layer collapse)."""
    return [name for name, keep in mask.items() if not keep.any()]
