"""Without torch: a variant as a graph of ONNX, all its layers dense, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
import onnxruntime

from dnnshifter_ext.package import PackedVariant
from dnnshifter_ext.runtime import program as programs
from dnnshifter_ext.runtime.backends import Model, ProgramPlan
from dnnshifter_ext.runtime.program import Program, Step

OPSET, IR_VERSION = 17, 8
_POOLS = {'max_pool': 'MaxPool', 'avg_pool': 'AveragePool'}


class OnnxPlan(ProgramPlan):
    def inflate(self) -> dict[str, np.ndarray]:
        return {name: self.variant.dense(name) for name in self.variant.tensors}

    def rebuild(self, weights: dict[str, np.ndarray]) -> Model:
        num_bytes = sum(array.nbytes for array in weights.values())
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised as well
        options.intra_op_num_threads = self.num_threads or 0
        try:
            session = onnxruntime.InferenceSession(
                to_onnx(self.program, weights).SerializeToString(), options, providers=['CPUExecutionProvider'])
        except Exception as error:  # the errors of ONNX Runtime have no base class but this one
            raise ValueError(f'ONNX Runtime refuses the model: {str(error).splitlines()[0]}') from error
        return Model(lambda batch: session.run(None, {'input': batch})[0], num_bytes)


def plan(variant: PackedVariant, num_threads: int | None) -> OnnxPlan:
    """See `backends`. The kernels of ONNX Runtime are dense, so all layers are, whatever the profile says."""
    program = programs.program(variant.structure(), {name: tensor.shape for name, tensor in variant.tensors.items()})
    return OnnxPlan(variant, program, num_threads, variant.num_bytes)


def to_onnx(program: Program, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """The model, its input called 'input', with an open number of images."""
    graph = _Graph(weights)
    for step in program.steps:
        _EMITTERS[step.kind](graph, step)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ['batch', *shape])
            for name, shape in (('input', program.input_shape), (program.output, program.output_shape))]
    return helper.make_model(helper.make_graph(graph.nodes, 'variant', ends[:1], ends[1:], graph.initializers),
                             opset_imports=[helper.make_opsetid('', OPSET)], ir_version=IR_VERSION)


class _Graph:
    """Nodes and tensors, as they are added."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def tensor(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def layer(self, step: Step) -> list[str]:
        """The names of its input and tensors."""
        names = ['weight', 'bias'] if step.options['bias'] else ['weight']
        return [step.inputs[0], *(self.tensor(f'{step.name}/{name}', self.weights[f'{step.options["layer"]}.{name}'])
                                  for name in names)]

    def clamp(self, source: str, output: str, low: float, high: float) -> None:
        if (low, high) == (0, math.inf):
            self.node('Relu', [source], output)
        else:
            limits = [self.tensor(f'{output}/{name}', np.float32(limit)) if math.isfinite(limit) else ''
                      for name, limit in (('low', low), ('high', high))]
            self.node('Clip', [source, *limits], output)

    def clamped(self, step: Step, kind: str, inputs: list[str], **attributes: object) -> None:
        limits = step.options['low'], step.options['high']
        if limits == (-math.inf, math.inf):
            self.node(kind, inputs, step.name, **attributes)
        else:
            self.clamp(self.node(kind, inputs, f'{step.name}/before', **attributes), step.name, *limits)


def _conv(graph: _Graph, step: Step) -> None:
    geometry = step.options['geometry']
    graph.clamped(step, 'Conv', graph.layer(step), kernel_shape=geometry.kernel, strides=geometry.stride,
                  pads=(*geometry.padding, *geometry.padding_end), dilations=geometry.dilation, group=geometry.groups)


def _linear(graph: _Graph, step: Step) -> None:
    graph.clamped(step, 'Gemm', graph.layer(step), transB=1)


def _pool(graph: _Graph, step: Step) -> None:
    options = step.options
    only_average = {'count_include_pad': 1} if step.kind == 'avg_pool' else {}
    graph.node(_POOLS[step.kind], list(step.inputs), step.name, kernel_shape=options['kernel'],
               strides=options['stride'], pads=options['padding'] * 2, **only_average)


def _reshape(graph: _Graph, step: Step) -> None:
    shape = graph.tensor(f'{step.name}/shape', np.array([-1, *step.shape], np.int64))
    graph.node('Reshape', [step.inputs[0], shape], step.name)


def _mean(graph: _Graph, step: Step) -> None:
    graph.node('ReduceMean', list(step.inputs), step.name, axes=[axis + 1 for axis in step.options['axes']],
               keepdims=int(step.options['keepdim']))


def _gather(graph: _Graph, step: Step) -> None:
    index = graph.tensor(f'{step.name}/index', graph.weights[step.options['tensor']])
    graph.node('Gather', [step.inputs[0], index], step.name, axis=1)


def _scatter_add(graph: _Graph, step: Step) -> None:
    """Each channel gathers what is added to it, which is a channel of zeros for most."""
    target, source = step.inputs
    index = graph.weights[step.options['tensor']]
    if len(np.unique(index)) != len(index):
        raise ValueError(f"'{step.name}' adds to a channel twice, which only the torch back end can do")
    origin = np.full(step.shape[0], len(index), np.int64)
    origin[index] = np.arange(len(index))
    num_dims = len(step.shape) + 1
    pads = graph.tensor(f'{step.name}/pads', np.eye(2 * num_dims, dtype=np.int64)[num_dims + 1])
    padded = graph.node('Pad', [source, pads], f'{step.name}/padded')
    spread = graph.node('Gather', [padded, graph.tensor(f'{step.name}/origin', origin)], f'{step.name}/spread', axis=1)
    graph.node('Add', [target, spread], step.name)


_EMITTERS: dict[str, Callable[[_Graph, Step], None]] = {
    'conv': _conv, 'linear': _linear, 'max_pool': _pool, 'avg_pool': _pool, 'reshape': _reshape, 'mean': _mean,
    'gather': _gather, 'scatter_add': _scatter_add,
    'clamp': lambda graph, step: graph.clamp(step.inputs[0], step.name, step.options['low'], step.options['high']),
    'add': lambda graph, step: graph.node('Add', list(step.inputs), step.name),
    'mul': lambda graph, step: graph.node('Mul', list(step.inputs), step.name),
    'cat': lambda graph, step: graph.node('Concat', list(step.inputs), step.name, axis=step.options['axis'] + 1),
    'constant': lambda graph, step: graph.tensor(step.name, graph.weights[step.options['tensor']])}
