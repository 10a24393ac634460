"""The ways a model can be run, for the profiler: each makes a module into a function of a batch.

Each is given a module of its own, in evaluation mode and on the device of the example batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dnnshifter_ext.graph import capture
from dnnshifter_ext.sparse.hybrid import InBlocks

Run = Callable[[torch.Tensor], object]
CPU_ONLY = ('onnxruntime',)


def eager(model: nn.Module, example: torch.Tensor) -> Run:
    """torch, operation by operation."""
    return model


def channels_last(model: nn.Module, example: torch.Tensor) -> Run:
    """Weights and images with the channels innermost; the batch comes as NCHW, so that its copy is part of the run."""
    model.to(memory_format=torch.channels_last)
    return lambda inputs: model(inputs.contiguous(memory_format=torch.channels_last))


def compiled(model: nn.Module, example: torch.Tensor) -> Run:
    """torch.compile with its defaults, for this shape of batch; a part that it cannot compile is an error."""
    # Compiled code is cached by the source of `forward`, of which each graph has its own.
    return torch.compile(capture(model), fullgraph=True, dynamic=False)


def onnxruntime(model: nn.Module, example: torch.Tensor) -> Run:
    """ONNX Runtime on the CPU with as many threads as torch."""
    try:
        import onnxruntime

        from dnnshifter_ext.onnx import INPUT, to_onnx
        content = to_onnx(model, example)
    except ImportError as error:
        raise RuntimeError(f'{error}; run: pip install onnx onnxscript onnxruntime') from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    return lambda inputs: session.run(None, {INPUT: inputs.numpy()})


BACKENDS = {'eager': eager, 'channels_last': channels_last, 'compile': compiled, 'onnxruntime': onnxruntime}


def prepare(backend: str, model: nn.Module, example: torch.Tensor) -> Run:
    """The function of a batch that runs `model` on the back end, tried once on the example batch.

    The module belongs to the function afterwards. Raises ValueError, in one line that names the back end, when there
    is none of this name, when it is not installed or when it cannot run the model.
    """
    if backend not in BACKENDS:
        raise ValueError(f"there is no back end '{backend}'; there are {', '.join(BACKENDS)}")
    if backend != 'eager' and isinstance(model, InBlocks):
        raise ValueError(f'back end {backend}: sparse layers run on their own kernels; only eager calls them')
    try:
        run = BACKENDS[backend](model, example)
        run(example)
    except Exception as error:  # compilers and foreign runtimes raise whatever they like
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f'back end {backend}: cannot run {type(model).__name__}: {reason}') from error
    return run
