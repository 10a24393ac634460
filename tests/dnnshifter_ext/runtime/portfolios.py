"""Small portfolios for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import numpy as np
import torch
from torch import nn

from dnnshifter_ext import convert
from dnnshifter_ext.package import Package, Variant, models, read, write
from tests.dnnshifter_ext import nets
from tests.dnnshifter_ext.sparsity import Sparsity, make_sparse

SHAPE = (3, 8, 8)
NAMES = ('small', 'middle', 'large')


def images(num: int, shape: Sequence[int] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randn(num, *shape).astype(np.float32)


def sparse(model: nn.Module, density: float = 0.3, dead_filters: float = 0.3, seed: int = 0) -> nn.Module:
    return make_sparse(model, Sparsity(density, dead_filters, seed=seed)).float()


def variant(name: str, model: nn.Module, execution: str = 'sparse', shape: Sequence[int] = SHAPE) -> Variant:
    """The converted model, with what says which layers run sparse."""
    conversion = convert(model, torch.from_numpy(images(2, shape)), execution=execution)
    profile = {} if conversion.execution is None else {'execution': conversion.execution.to_dict()}
    return models.variant(name, conversion.pruned, profile, shape)


@functools.cache
def content() -> bytes:
    """The package of three VGGs of different sizes, which give different answers; with sparse layers."""
    widths = {'small': (4, 'M', 6), 'middle': (8, 'M', 12), 'large': (16, 'M', 24)}
    torch.manual_seed(0)
    return write([variant(name, sparse(nets.VGG(plan), 0.5, 0.0, seed)) for seed, (name, plan) in
                  enumerate(widths.items())])


def package() -> Package:
    return read(content())


def expected(batch: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of each variant, dense and in torch."""
    with torch.inference_mode():
        return {packed.name: models.rebuild(packed)(torch.from_numpy(batch)).numpy() for packed in package().variants}


def is_close(outputs: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-5) -> bool:
    """As a share of the range."""
    return outputs.shape == wanted.shape and bool(np.abs(outputs - wanted).max() <= tolerance * np.ptp(wanted))


class BrokenVariant:
    """Like a variant of a package, but its tensors cannot be inflated."""

    def __init__(self, packed, error: Exception) -> None:
        self._packed, self._error = packed, error

    def __getattr__(self, name: str) -> object:
        return getattr(self._packed, name)

    def dense(self, name: str) -> np.ndarray:
        raise self._error

    sparse = dense


def broken(name: str, error: Exception) -> Package:
    """The package with one variant that cannot be inflated."""
    whole = package()
    return Package(whole.content, tuple(
        BrokenVariant(packed, error) if packed.name == name else packed for packed in whole.variants))
