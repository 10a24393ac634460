"""Module 5, what can be counted without a clock: the bytes, the floating-point operations and the memory of a model."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from dnnshifter_ext.graph import capture
from dnnshifter_ext.sparse.convolution import block_size
from dnnshifter_ext.sparse.hybrid import InBlocks
from dnnshifter_ext.sparse.layers import SparseLayer


def size_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they are stored."""
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def num_params(model: nn.Module) -> int:
    """Weights and biases as they are stored; of sparse layers, those that are left."""
    return sum(part.numel() for part in _weights(model))


def num_nonzero_params(model: nn.Module) -> int:
    """Those of `num_params` that are not zero."""
    return sum(int(part.count_nonzero()) for part in _weights(model))


def _weights(model: nn.Module) -> list[torch.Tensor]:
    sparse = [layer for layer in model.modules() if isinstance(layer, SparseLayer)]
    return [*model.parameters(), *(part for layer in sparse for part in (layer.values, layer.bias))]


def num_flops(model: nn.Module, inputs: torch.Tensor) -> int:
    """Floating-point operations of the convolutions and matrix products of one forward pass; multiply-add = 2.

    Zeros count like any other number, where they are stored. Nothing is computed: shapes suffice (torch's
    FlopCounterMode on 'meta').
    """
    # On 'meta' attention does not take the fast path, whose operations the counter does not know.
    shapes_only = copy.deepcopy(model).eval().to('meta')
    in_sparse_layers = []
    for layer in shapes_only.modules():
        if isinstance(layer, SparseLayer):
            layer.register_forward_hook(lambda layer, _, out: in_sparse_layers.append(
                2 * layer.num_nonzero * out.numel() // out.shape[1]))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        shapes_only(inputs.to('meta'))
    return counter.get_total_flops() + sum(in_sparse_layers)


def peak_memory_bytes(model: nn.Module, inputs: torch.Tensor, device: torch.device | str = 'cpu') -> int:
    """The most bytes of tensors alive at once during one forward pass: weights, input and activations.

    On the CPU each activation is counted until its last use, scratch memory inside an operation is not; on a
    GPU it is what the allocator handed out, scratch memory included.
    """
    device = torch.device(device)
    model = copy.deepcopy(model).eval()
    with torch.inference_mode():
        if device.type == 'cuda':
            others = torch.cuda.memory_allocated(device)
            model.to(device)
            torch.cuda.reset_peak_memory_stats(device)
            model(inputs.to(device))
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - others
        if isinstance(model, InBlocks) and len(inputs) > block_size():
            whole = inputs.nbytes + model(inputs).nbytes
            return whole + peak_memory_bytes(model.model, inputs[:block_size()])
        counter = _LiveBytes(capture(model.model if isinstance(model, InBlocks) else model))
        counter.run(inputs)
        return size_bytes(model) + counter.peak_bytes


class _LiveBytes(fx.Interpreter):
    """Runs a graph, frees every value after its last use, and remembers the most bytes alive at once."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._weights = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
        self.peak_bytes = 0

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        # By storage: a view, or the result of an in-place operation, is no second copy.
        storages = (value.untyped_storage() for value in (*self.env.values(), result)
                    if isinstance(value, torch.Tensor))
        alive = {storage.data_ptr(): storage.nbytes() for storage in storages}
        self.peak_bytes = max(self.peak_bytes, sum(
            nbytes for pointer, nbytes in alive.items() if pointer not in self._weights))
        return result
