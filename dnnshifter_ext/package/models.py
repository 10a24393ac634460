"""Models of torch into variants, and back. The only part of the package that imports torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from dnnshifter_ext import export
from dnnshifter_ext.package.container import PackedVariant, Variant
from dnnshifter_ext.package.errors import PackageError


def variant(name: str, model: nn.Module, profile: dict, input_shape: Sequence[int] | None = None) -> Variant:
    """The model, ready to be packed; `input_shape` as in `export.to_data`, whose ValueErrors it raises.

    PackageError for a dtype that numpy does not have.
    """
    data = export.to_data(model, input_shape)
    try:
        tensors = {key: tensor.detach().cpu().numpy() for key, tensor in data['tensors'].items()}
    except TypeError as error:
        raise PackageError(f"variant '{name}' cannot be packed: {error}") from error
    return Variant(name, data['structure'], tensors, profile)


def rebuild(packed: PackedVariant) -> nn.Module:
    """The model as `export.load` returns it, from dense tensors.

    Raises PackageError when the package is damaged, ValueError when the structure is none of `export`.
    """
    tensors = {name: torch.from_numpy(packed.dense(name)) for name in packed.tensors}
    return export.from_data({'format': export.FORMAT, 'version': export.VERSION, 'structure': packed.structure(),
                             'tensors': tensors})
