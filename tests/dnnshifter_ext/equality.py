"""How equal two models are, apart from the converter's own check: each is run as it is, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

EXACT = 1e-9  # of the range of the outputs


@dataclass(frozen=True)
class Difference:
    """Between the outputs of two models.

    relative: the largest over the outputs, as a share of the range of that output (of its size, where it is all but
    constant). changed_predictions: how often another entry along dimension 1 is the largest. dependence: how far the
    outputs of the first model are apart for two inputs, as the same share: where it is 0, equality means little.
    """

    relative: float
    changed_predictions: int
    dependence: float

    @property
    def is_exact(self) -> bool:
        return self.relative <= EXACT and self.changed_predictions == 0  # false for NaN


def difference(model: nn.Module, other: nn.Module, x: torch.Tensor) -> Difference:
    """The outputs of `other` against those of `model`; both are in float64 and evaluation mode, and so is x."""
    outputs, others = outputs_of(model, x), outputs_of(other, x)
    assert [y.shape for y in outputs] == [z.shape for z in others]
    relative, dependence, num_changed = [], [], 0
    for y, z in zip(outputs, others):
        spread, size = y.max() - y.min(), y.abs().max()
        scale = spread if spread > 1e-3 * size else size if size else 1.0
        relative.append((y - z).abs().max() / scale)
        dependence.append((y[0] - y[1]).abs().max() / scale)
        num_changed += int((y.argmax(1) != z.argmax(1)).sum())
    # torch's maximum is NaN if any is
    return Difference(float(torch.stack(relative).max()), num_changed, float(torch.stack(dependence).max()))


def outputs_of(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output tensors, in order, also of tuples, lists and dicts."""
    with torch.no_grad():
        output = model(x.clone())
    if isinstance(output, torch.Tensor):
        return [output]
    return list(output.values() if isinstance(output, dict) else output)
