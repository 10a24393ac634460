"""The ways a variant can be run. Each is a module with one function, imported when it is asked for:

    plan(variant, num_threads) -> Plan         all that does not depend on the weights, done once per variant
    Plan.inflate() -> weights                  out of the package; layers chosen to be sparse are never dense
    Plan.rebuild(weights) -> Model             around them; Model.run: (N, ...) float32 array -> (N, outputs)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
import importlib
from typing import Any, Protocol

import numpy as np

from dnnshifter_ext.package import PackedVariant
from dnnshifter_ext.runtime.program import Program
from dnnshifter_ext.sparse.filters import SparseFilters

_MODULES = {'torch': 'on_torch', 'onnxruntime': 'on_onnxruntime', 'numpy': 'on_numpy'}
NAMES = tuple(_MODULES)


@dataclass(frozen=True, eq=False)
class Model:
    """run: may be called from several threads at once. num_bytes: of the weights.

    scratch_bytes: of what the sparse kernels work in, per thread that calls, as far as it is known by now.
    """

    run: Callable[[np.ndarray], np.ndarray]
    num_bytes: int
    scratch_bytes: Callable[[], int] = lambda: 0


class Plan(Protocol):
    """num_bytes: that the weights will take, at most. input_shape: of one image, None if nobody knows."""

    num_bytes: int
    input_shape: tuple[int, ...] | None

    def inflate(self) -> Any:
        """The weights. Raises PackageError when the package is damaged."""

    def rebuild(self, weights: Any) -> Model:
        """A new model; it owns the weights."""


@dataclass(frozen=True, eq=False)
class ProgramPlan:
    """What the plans that run a `Program` have in common."""

    variant: PackedVariant
    program: Program
    num_threads: int | None
    num_bytes: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.program.input_shape


def plans(backend: str, variants: tuple[PackedVariant, ...], num_threads: int | None) -> tuple[Plan, ...]:
    """One for each variant. num_threads: of one inference, None for the back end's default.

    Raises ValueError, in one line, when there is no such back end, it is not installed, or it cannot run a variant.
    """
    if backend not in _MODULES:
        raise ValueError(f"there is no back end '{backend}', only {', '.join(NAMES)}")
    try:
        module = importlib.import_module(f'{__name__}.{_MODULES[backend]}')
        return tuple(_named(variant, module.plan, num_threads) for variant in variants)
    except ImportError as error:
        raise ValueError(f"back end '{backend}' is not installed ({error}); another one is chosen with "
                         f'backend={" or ".join(name for name in NAMES if name != backend)}') from error


def _named(variant: PackedVariant, plan: Callable, num_threads: int | None) -> Plan:
    try:
        return plan(variant, num_threads)
    except ValueError as error:
        raise ValueError(f"variant '{variant.name}': {error}") from error


def sparse_layers(variant: PackedVariant) -> frozenset[str]:
    """The paths of those that the profile wants on sparse kernels.

    Raises ValueError for a profile that says so in no way we know.
    """
    execution = variant.profile.get('execution')
    try:
        return frozenset(layer['layer'] for layer in (execution or {}).get('layers', ())
                         if layer['execution'] == 'sparse')
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError('the profile does not say which layers are sparse '
                         f'({type(error).__name__}: {error})') from error


def inflate_sparse(variant: PackedVariant, path: str) -> tuple[SparseFilters, np.ndarray]:
    """Weights, which are never dense, and bias (O,) of a layer. Raises ValueError for filters that are too large."""
    weight = variant.sparse(f'{path}.weight')
    filters = SparseFilters.from_flat(weight.shape, weight.positions, weight.values)
    has_bias = f'{path}.bias' in variant.tensors
    return filters, variant.dense(f'{path}.bias') if has_bias else np.zeros(weight.shape[0], np.float32)


def num_bytes(variant: PackedVariant, sparse: Iterable[str]) -> int:
    """What its tensors take, those of the layers `sparse` as `inflate_sparse` returns them.

    At most: of a weight that is stored dense, nobody knows yet how many zeros it has. Raises ValueError for a layer
    without weights or with others than float32.
    """
    total = variant.num_bytes
    for path in sparse:
        weight, bias = (variant.tensors.get(f'{path}.{name}') for name in ('weight', 'bias'))
        if weight is None or weight.dtype != 'float32':
            raise ValueError(f"layer '{path}' has no weights of float32")
        num_values = weight.layout.num_values if weight.is_sparse else weight.size
        total += 6 * num_values + 4 * (weight.shape[0] + 1) + 4 * weight.shape[0]
        total -= weight.num_bytes + (bias.num_bytes if bias else 0)
    return total
