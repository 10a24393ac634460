"""Which layers run sparse: those that are faster so, measured once on this machine."""

from __future__ import annotations

from collections.abc import Callable
import copy
from dataclasses import asdict, dataclass
import statistics
import time

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.graph import trace_shapes
from dnnshifter_ext.sparse import library
from dnnshifter_ext.sparse.convolution import block_size, is_across_images
from dnnshifter_ext.sparse.filters import SparseFilters
from dnnshifter_ext.sparse.hybrid import candidates, is_per_image, to_hybrid
from dnnshifter_ext.sparse.layers import from_dense
from dnnshifter_ext.verify import EXACT_TOLERANCE

EXECUTIONS = ('dense', 'sparse', 'auto')
NUM_ROUNDS = 7
LATENCY_TOLERANCE = 1.05
SMALL_BYTES = 2**16


@dataclass(frozen=True)
class LayerExecution:
    """One layer that has a sparse form. Times of one block of images, by itself, median; None if nobody asked.

    execution: 'dense' or 'sparse'; density: non-zero weights / weights; bytes: of weights and bias.
    """

    layer: str
    execution: str
    density: float
    dense_bytes: int
    sparse_bytes: int
    dense_ms: float | None = None
    sparse_ms: float | None = None


@dataclass(frozen=True)
class Execution:
    """How a model is run, and why.

    reason: why all of it is dense although something else was asked for, or ''.
    batch_size: of the measurements of the whole model; block_size: of those of layers.
    dense_ms, predicted_ms, measured_ms: all dense; what the layers' times promise; what was measured; or None.
    """

    layers: tuple[LayerExecution, ...]
    reason: str = ''
    batch_size: int | None = None
    block_size: int | None = None
    num_threads: int | None = None
    dense_ms: float | None = None
    predicted_ms: float | None = None
    measured_ms: float | None = None

    @property
    def num_sparse(self) -> int:
        return sum(layer.execution == 'sparse' for layer in self.layers)

    def to_dict(self) -> dict:
        return asdict(self)


def with_execution(
    model: fx.GraphModule, inputs: tuple[torch.Tensor, ...], execution: str,
) -> tuple[nn.Module, Execution]:
    """`model`, or a hybrid that computes the same, and which of its layers are sparse.

    execution: 'sparse' makes every layer sparse that can be; 'auto' measures with `inputs` and takes the fastest of all
    dense, sparse wherever that is smaller, and sparse where the layer alone is faster so, too; of those nearly as fast,
    and no slower than dense, the smallest.
    """
    nodes = candidates(model)
    reason = _why_dense(model, inputs, nodes)
    if reason:
        return model, Execution((), reason)
    forms = {path: from_dense(model.get_submodule(path)) for path in nodes}
    if execution == 'auto':
        forms = {path: form for path, form in forms.items() if not _grows(model.get_submodule(path), form)}
        if not forms:
            return model, Execution((), 'every layer would be larger sparse')
    filters = {path: form.filters() for path, form in forms.items()}
    layers = {
        path: LayerExecution(path, 'sparse', filters[path].density, dense_bytes=size_bytes(model.get_submodule(path)),
                             sparse_bytes=size_bytes(form))
        for path, form in forms.items()}
    if execution == 'sparse':
        return to_hybrid(model, forms, filters), Execution(tuple(layers.values()))
    [batch] = inputs
    block = batch[:block_size()]
    shapes = trace_shapes(model, [batch[:1]])
    for path, form in forms.items():
        shape = shapes[nodes[path].args[0].name]
        dense_ms, sparse_ms = _time_layer(model.get_submodule(path), form, shape, len(block))
        layers[path] = LayerExecution(**asdict(layers[path]) | {
            'execution': 'sparse' if sparse_ms < dense_ms else 'dense', 'dense_ms': dense_ms, 'sparse_ms': sparse_ms})
    models = _models(model, [path for path, layer in layers.items() if layer.execution == 'sparse'], filters)
    times_ms = dict(zip(models, median_ms([lambda run=run: run(batch) for run in models.values()]), strict=True))
    limit_ms = min(LATENCY_TOLERANCE * min(times_ms.values()), times_ms['dense'])
    chosen = min((name for name in models if times_ms[name] <= limit_ms), key=lambda name: size_bytes(models[name]))
    if chosen != 'mixed':
        layers = {path: LayerExecution(**asdict(layer) | {'execution': chosen}) for path, layer in layers.items()}
    gain_ms = sum(layer.dense_ms - layer.sparse_ms for layer in layers.values() if layer.execution == 'sparse')
    return models[chosen], Execution(
        tuple(layers.values()), '', len(batch), len(block), torch.get_num_threads(), times_ms['dense'],
        times_ms['dense'] - gain_ms * len(batch) / max(len(block), 1), times_ms[chosen])


def median_ms(runs: list[Callable[[], object]]) -> list[float]:
    """Milliseconds of each, run in turn so that what else the machine does falls on all alike; warm."""
    with torch.inference_mode():
        for run in runs:
            run()
        rounds = [[_run_ms(run) for run in runs] for _ in range(NUM_ROUNDS)]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _run_ms(run: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    run()
    return (time.perf_counter() - begin_s) * 1e3


def _grows(dense: nn.Module, sparse: nn.Module) -> bool:
    """Whether the layer is one whose sparse form would be larger, by an amount that matters."""
    return size_bytes(sparse) > max(size_bytes(dense), SMALL_BYTES)


def _why_dense(model: fx.GraphModule, inputs: tuple[torch.Tensor, ...], nodes: dict[str, fx.Node]) -> str:
    if len(inputs) != 1 or inputs[0].dim() < 2 or not is_per_image(model):
        return 'sparse execution takes models of one batch of inputs and one of outputs'
    if inputs[0].device.type != 'cpu' or inputs[0].dtype != torch.float32:
        return f'sparse execution is for float32 on the CPU, not {inputs[0].dtype} on {inputs[0].device}'
    if not nodes:
        return 'no layer has a sparse form'
    if library.load() is None:
        return 'there is no C compiler for the sparse kernels'
    if not _treats_each_alone(model, inputs[0][:1]):
        return 'what the model computes for an image depends on the others of its batch'
    return ''


def _treats_each_alone(model: fx.GraphModule, image: torch.Tensor) -> bool:
    """Whether two images together give what they give one by one: by its norms, and by trying, free of rounding."""
    if any(type(norm) in ops.BATCH_NORMS and norm.running_mean is None for norm in model.modules()):
        return False  # it goes by the images at hand
    model = copy.deepcopy(model).double()
    pair = torch.cat([image, torch.rand(image.shape, generator=torch.Generator().manual_seed(0))]).double()
    with torch.inference_mode():
        try:
            together, alone = model(pair.clone()), torch.cat([model(one.clone()) for one in pair.split(1)])
        except (RuntimeError, TypeError):  # it takes one image alone, or returns more than a tensor
            return False
    return together.shape == alone.shape and bool((together - alone).abs().max() <= EXACT_TOLERANCE * alone.abs().max())


def _time_layer(dense: nn.Module, sparse: nn.Module, shape: torch.Size, num_images: int) -> tuple[float, float]:
    """Each on inputs as its neighbours of the same kind would hand them over."""
    x = torch.rand(num_images, *shape[1:], generator=torch.Generator().manual_seed(0))
    across = x.flatten(1).t().contiguous().t().view(x.shape) if is_across_images(num_images) else x
    dense_ms, sparse_ms = median_ms([lambda: dense(x), lambda: sparse(across)])
    return dense_ms, sparse_ms


def _models(model: fx.GraphModule, faster: list[str], able: dict[str, SparseFilters]) -> dict[str, nn.Module]:
    """The hybrids share their weights."""
    models: dict[str, nn.Module] = {'dense': model, 'sparse': to_hybrid(model, able, able)}
    if faster and len(faster) < len(able):
        models['mixed'] = to_hybrid(model, faster, able)
    return models
