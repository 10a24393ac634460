"""Model ensemble (Ganaie et al. 2022): all variants are resident and answer; the most confident answer counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dnnshifter_ext.costs import size_bytes


class Ensemble:
    """models: of the same classes, each (N, ...) -> logits (N, D). Raises ValueError without any."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        if not models:
            raise ValueError('an ensemble needs at least one model')
        self._models = [model.eval() for model in models]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """(N,) classes: for each image that of the model whose highest softmax probability is highest."""
        with torch.inference_mode():
            return most_confident(torch.stack([model(images) for model in self._models]))

    @property
    def size_bytes(self) -> int:
        """Of all that is resident: the sum over the models, as none is compressed."""
        return sum(map(size_bytes, self._models))


def most_confident(logits_MND: torch.Tensor) -> torch.Tensor:
    """(N,) classes out of the logits of M models; of equally confident models the first."""
    confidence_MN, classes_MN = logits_MND.softmax(2).max(2)
    chosen_N = confidence_MN.argmax(0)  # the first one of equal ones
    return classes_MN.gather(0, chosen_N[None])[0]
