"""A model as ONNX, and the proof: what ONNX Runtime makes of it against what torch does."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import copy
import io
import logging

import torch
from torch import nn

from dnnshifter_ext.sparse.hybrid import InBlocks, to_dense
from dnnshifter_ext.verify import Comparison, compare_outputs, outputs_of

INPUT, OUTPUT = 'input', 'output'
# Share of the range of the outputs. Rounding in float32 takes about 1e-7 of it.
TOLERANCE = 1e-4
# Of a protocol buffer, and so of an ONNX file with its weights inside.
MAX_BYTES = 2 ** 31 - 1


def to_onnx(model: nn.Module, example_inputs: torch.Tensor) -> bytes:
    """The model in evaluation mode as the content of an ONNX file, with its weights inside.

    example_inputs: (N, ...), of the model's dtype. N, called 'batch' in the file, stays open; the rest is fixed.
    The graph's input is called 'input', its (first) output 'output'. The model itself is untouched.
    Raises ValueError when the model cannot run on the inputs, has an operation that torch.onnx.export does not
    support or would not fit into one file of 2 GiB; ImportError without the packages onnx and onnxscript.
    """
    if sum(tensor.nbytes for tensor in model.state_dict().values()) > MAX_BYTES:
        raise ValueError('the weights take more than the 2 GiB that one ONNX file can hold')
    model = to_dense(model) if isinstance(model, InBlocks) else model
    outputs_of(model, example_inputs[:1])  # says better than the exporter what is wrong with the inputs
    # torch.export takes a size of 1 for a constant.
    inputs = example_inputs if len(example_inputs) > 1 else torch.cat([example_inputs] * 2)
    try:
        with _quiet():
            program = torch.onnx.export(
                copy.deepcopy(model).eval(), (inputs,), input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim('batch')},), dynamo=True, verbose=False)
            return program.model_proto.SerializeToString()
    except ImportError:
        raise
    except Exception as error:  # the exporter runs the model and its own passes, which may raise anything
        raise ValueError(f'torch.onnx.export fails on inputs of shape {tuple(inputs.shape)}: '
                         f'{_reason(error)}') from error


def check_onnx(content: bytes, model: nn.Module, inputs: torch.Tensor) -> Comparison:
    """ONNX Runtime's outputs against those of `model` in float64, on inputs[:1] and on all `inputs` at once.

    content: what `to_onnx` returned; inputs: (N, ...), like its example inputs, N of any size.
    Raises ValueError when onnx.checker finds a fault, ONNX Runtime cannot run the content, or the shapes of the
    outputs differ; ImportError without the packages onnx and onnxruntime.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised as well
    model = to_dense(model) if isinstance(model, InBlocks) else model  # for float64
    batches = inputs[:1], inputs
    expected = [output for batch in batches for output in outputs_of(model, batch)]
    try:
        onnx.checker.check_model(content, full_check=True)
        session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
        actual = [torch.from_numpy(output).double()
                  for batch in batches for output in session.run(None, {INPUT: batch.numpy()})]
    except Exception as error:  # the errors of ONNX Runtime have no base class but this one
        raise ValueError(f'ONNX Runtime cannot run the exported model: {_reason(error)}') from error
    return compare_outputs(expected, actual)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, warns and logs about its own passes, not about the model; what matters it raises."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """One line: the exporter wraps the reason in advice on how to debug the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error) or type(error).__name__).strip().splitlines()[0]
