"""The sparse kernels, kernels.c, and the threads they run on."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
import functools
import os
from pathlib import Path
import threading

from dnnshifter_ext import compiler

SOURCE = Path(__file__).with_name('kernels.c')
# What the names of files contain through which GNU's entry point into an OpenMP runtime is found, the best first: torch
# leads to its own; then any. A process may have several, from scikit-learn say.
_OPENMP = ('libtorch_cpu', 'libgomp', 'libiomp', 'libomp')
_lock = threading.Lock()


@dataclass(frozen=True)
class Library:
    """functions: of kernels.c. parallel: the address of GOMP_parallel, or None for one thread."""

    functions: ctypes.CDLL
    parallel: int | None


def load() -> Library | None:
    """The kernels, compiled now if they never were on this machine (a second); None without a C compiler."""
    with _lock:  # the first callers may be several
        return _load()


@functools.cache
def _load() -> Library | None:
    path = compiler.compile_once(SOURCE, 'the sparse kernels', 'sparse layers run on scipy, slowly')
    if path is None:
        return None
    functions = ctypes.CDLL(os.fspath(path))
    for function in (functions.lanes, functions.size_of_convolution, functions.plan, functions.convolve):
        function.restype = ctypes.c_int64
    return Library(functions, _find_parallel())


def _find_parallel() -> int | None:
    """From the runtime that torch uses, if it is loaded: its threads wait for more work in a loop, and those of another
    would find no core."""
    try:
        loaded = [line.split()[-1] for line in Path('/proc/self/maps').read_text().splitlines() if '/' in line]
    except OSError:
        loaded = []
    candidates = [path for name in _OPENMP for path in dict.fromkeys(loaded) if name in os.path.basename(path)]
    addresses = map(_address_of_parallel, (*candidates, 'libgomp.so.1', 'libomp.so', 'libomp.dylib'))
    return next((address for address in addresses if address), None)


def _address_of_parallel(path: str) -> int | None:
    try:
        return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
