"""The model as a torch.fx graph: captured from a module, taken apart into layers, and put together again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
import copy

import torch
from torch import fx, nn
from torch.nn.utils.parametrize import is_parametrized

from dnnshifter_ext import ops

_HOOKS = ('_forward_hooks', '_forward_pre_hooks')


class _Tracer(fx.Tracer):
    """Traces through modules a forward function makes on the spot, such as `nn.AvgPool2d(2)(x)`.

    failed_in: after an error, the path of the innermost module in which it arose, or ''.
    """

    failed_in = ''

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in ops.MODULE_ARGUMENTS or super().is_leaf_module(m, module_qualified_name)

    def trace(self, root: nn.Module, concrete_args: dict | None = None) -> fx.Graph:
        self._own_modules = set(root.modules())
        return super().trace(root, concrete_args)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> object:
        if m not in self._own_modules:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


def capture(model: nn.Module) -> fx.GraphModule:
    """The graph of a copy of `model` that shares its tensors: they may not be changed.

    What does nothing in evaluation mode but would tie the graph to torchvision (stochastic depth) is left out.
    Raises ValueError, naming the problem, when a layer carries forward hooks or parametrizations (their effect would
    be lost), when the model is in training mode, when torch.fx cannot trace it or when a weight is NaN or infinite.
    """
    name = type(model).__name__
    for path, module in model.named_modules():
        if type(module) in ops.MODULE_ARGUMENTS and any(getattr(module, hooks) for hooks in _HOOKS):
            raise ValueError(f"{name}: '{path}' carries a forward hook; remove it before the conversion "
                             '(a mask of torch.nn.utils.prune: with prune.remove)')
        if is_parametrized(module):
            raise ValueError(f"{name}: '{path}' is parametrized; call remove_parametrizations before the "
                             'conversion')
    training = {path: type(module) for path, module in model.named_modules() if module.training}
    if training:
        path = next((path for path, kind in training.items() if kind in ops.BATCH_NORMS), next(iter(training)))
        where = f"'{path}' ({training[path].__name__}) is" if path else 'the model is'
        raise ValueError(f'{name}: {where} in training mode; call model.eval() before the conversion')
    tracer = _Tracer()
    try:
        # Tracing may leave attributes in the root.
        root = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
        graph_module = fx.GraphModule(root, _drop_stochastic_depth(tracer.trace(root)), name).eval()
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        where = f" ('{tracer.failed_in}')" if tracer.failed_in else ''
        raise ValueError(f'{name}: torch.fx cannot trace this model: {reason}{where}; rewrite that part of its '
                         'forward, or convert the model without it') from error
    for path, tensor in graph_module.state_dict().items():
        # A finite sum proves it in a tenth of the time; an infinite one may only have overflowed.
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all():
            raise ValueError(f"{name}: '{path}' has NaN or infinite entries; take weights from before "
                             'the training diverged')
    return graph_module


def _drop_stochastic_depth(graph: fx.Graph) -> fx.Graph:
    """The graph without the calls that only return their input. torchvision wraps the function: it is not traced."""
    for node in graph.nodes:
        if (node.op == 'call_function' and getattr(node.target, '__name__', '') == 'stochastic_depth'
                and node.target.__module__.startswith('torchvision.') and len(node.args) == 4
                and node.args[3] is False):  # input, p, mode, training
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


def rebuild(
    graph_module: fx.GraphModule, replacements: dict[str, nn.Module], graph: fx.Graph | None = None,
) -> fx.GraphModule:
    """A new module with the same graph (or `graph`), the given layers replaced, the others deep-copied."""
    graph = copy.deepcopy(graph_module.graph) if graph is None else graph
    parts: dict[str, nn.Module | torch.Tensor] = {}
    for node in graph.nodes:
        if node.op in ('call_module', 'get_attr') and node.target not in parts:
            path, _, attribute = node.target.rpartition('.')
            parts[node.target] = replacements[node.target] if node.target in replacements else (
                ops.copy_of(getattr(graph_module.get_submodule(path), attribute)))
    return assemble(parts, graph, type(graph_module).__name__)


def assemble(parts: dict[str, nn.Module | torch.Tensor], graph: fx.Graph, name: str) -> fx.GraphModule:
    """A module in evaluation mode out of a graph and the layers and tensors, by path, that it refers to.

    torch.fx takes a dict too, but would change the order of the state dict.
    """
    # Around no graph first: around a module, torch.fx would take its parts into copies of all modules above them.
    module = fx.GraphModule(nn.Module(), fx.Graph(), name)
    for path in dict.fromkeys(node.target for node in graph.nodes if node.op in ('call_module', 'get_attr')):
        part, parent, (*above, last) = parts[path], module, path.split('.')
        for step in above:
            if step not in parent._modules:
                parent.add_module(step, nn.Module())
            parent = parent._modules[step]
        if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
            parent.register_buffer(last, part)
        else:
            setattr(parent, last, part)
    module.graph = graph
    return module.eval()


def single_calls(graph_module: fx.GraphModule) -> dict[fx.Node, nn.Module]:
    """Node -> module, for modules that are called exactly once, with one value, and nobody else reads."""
    modules = dict(graph_module.named_modules(remove_duplicate=False))
    called = [(node, modules[node.target])
              for node in graph_module.graph.nodes if node.op == 'call_module']
    num_calls = Counter(id(module) for _, module in called)
    shared = {node.target.rpartition('.')[0] for node in graph_module.graph.nodes if node.op == 'get_attr'}
    return {node: module for node, module in called
            if num_calls[id(module)] == 1 and node.target not in shared
            and len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs}


class _ShapeTracer(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[str, torch.Size] = {}

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        if isinstance(result, torch.Tensor) and node.op != 'output':
            self.shapes[node.name] = result.shape
        return result


def trace_shapes(graph_module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Size]:
    """Name of a node -> shape of its value on these inputs, for every value that is a tensor.

    Raises ValueError when the model does not accept the inputs.
    """
    tracer = _ShapeTracer(graph_module)
    dtype = next((tensor.dtype for tensor in graph_module.parameters()), None)
    shapes = ', '.join('x'.join(map(str, part.shape)) for part in inputs)
    try:
        with torch.no_grad():
            tracer.run(*(part.to(dtype, copy=True) if part.is_floating_point() else part.clone() for part in inputs))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f'{type(graph_module).__name__} does not accept example inputs of shape {shapes}: '
                         f'{reason}; give the shape it was trained on') from error
    return tracer.shapes
