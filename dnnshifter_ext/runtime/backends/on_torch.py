"""Dense layers in torch, the others on the sparse kernels: all of which only differ in their tensors.

A graph costs milliseconds to build, tensors cost microseconds to exchange. So each variant is built once without
weights, and a model that can answer is a copy of that, module by module, around the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from dnnshifter_ext import export
from dnnshifter_ext.package import PackedVariant
from dnnshifter_ext.runtime.backends import Model, inflate_sparse, num_bytes, sparse_layers
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.hybrid import to_hybrid
from dnnshifter_ext.sparse.layers import SparseLayer

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class TorchPlan:
    """skeleton: the model with tensors of the device 'meta'; sparse: the paths of its sparse layers."""

    variant: PackedVariant
    skeleton: nn.Module
    sparse: frozenset[str]
    num_bytes: int
    input_shape: tuple[int, ...] | None

    def inflate(self) -> Weights:
        """Path of a tensor in the model -> tensor."""
        weights = {name: torch.from_numpy(self.variant.dense(name)) for name in self.variant.tensors
                   if name.rpartition('.')[0] not in self.sparse}
        for path in self.sparse:
            filters, bias = inflate_sparse(self.variant, path)
            arrays = {'pointers': filters.pointers, 'positions': filters.positions, 'values': filters.values,
                      'bias': bias}
            weights |= {f'{path}.{name}': torch.from_numpy(array) for name, array in arrays.items()}
        return weights

    def rebuild(self, weights: Weights) -> Model:
        outer = _around(self.skeleton, '', weights) if not self.sparse else _with_inner(self.skeleton, weights)
        layers = [module for module in outer.modules() if isinstance(module, SparseLayer)]
        for layer in layers:
            layer.prepare()

        def run(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return outer(torch.from_numpy(batch)).numpy()

        def scratch_bytes() -> int:
            return max((layer.prepare().scratch_bytes for layer in layers), default=0)

        return Model(run, sum(tensor.nbytes for tensor in weights.values()), scratch_bytes)


def plan(variant: PackedVariant, num_threads: int | None) -> TorchPlan:
    """See `backends`. num_threads is set for the process, as torch does it."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    tensors = {name: torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device='meta')
               for name, tensor in variant.tensors.items()}
    skeleton = export.from_data({'format': export.FORMAT, 'version': export.VERSION,
                                 'structure': variant.structure(), 'tensors': tensors})
    input_shape = skeleton.meta.get('input_shape')
    sparse = sparse_layers(variant)
    total_bytes = num_bytes(variant, sparse)
    if sparse:
        skeleton = to_hybrid(skeleton, sparse, {path: _no_weights(tensors[f'{path}.weight']) for path in sparse})
    return TorchPlan(variant, skeleton, sparse, total_bytes, input_shape)


def _no_weights(weight: torch.Tensor) -> SparseFilters:
    return SparseFilters(tuple(weight.shape), np.zeros(len(weight) + 1, np.int32), np.zeros(0, np.uint16),
                         np.zeros(0, np.float32))


def _with_inner(skeleton: nn.Module, weights: Weights) -> nn.Module:
    """An InBlocks whose model has the weights."""
    outer = _copy(skeleton)
    vars(outer)['_modules'] = {'model': _around(skeleton.model, '', weights)}
    return outer


def _around(skeleton: nn.Module, path: str, weights: Weights) -> nn.Module:
    """A copy of the module, and of those in it, with these tensors. `path`: of the module, with a dot at its end."""
    new = _copy(skeleton)
    state = vars(new)
    state['_parameters'] = {name: None if old is None else nn.Parameter(weights[path + name], requires_grad=False)
                            for name, old in skeleton._parameters.items()}
    state['_buffers'] = {name: None if old is None else weights[path + name]
                         for name, old in skeleton._buffers.items()}
    state['_modules'] = {name: _around(child, f'{path}{name}.', weights) for name, child in skeleton._modules.items()}
    if isinstance(skeleton, SparseLayer):
        state['num_nonzero'] = len(weights[f'{path}values'])
    return new


def _copy(module: nn.Module) -> nn.Module:
    """Shares everything with `module`, its generated code too."""
    new = object.__new__(type(module))
    vars(new).update(vars(module))
    return new
