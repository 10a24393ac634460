"""The compiled kernels: made from kernels.c by the system's compiler on first use, and kept for the next time."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
import functools
import hashlib
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import tempfile
import threading

SOURCE = Path(__file__).with_name('kernels.c')
COMPILERS = ('cc', 'gcc', 'clang')
FLAGS = ('-O3', '-std=gnu11', '-shared', '-fPIC')
NATIVE = '-march=native'
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
    path = _compiled()
    if path is None:
        return None
    functions = ctypes.CDLL(os.fspath(path))
    for function in (functions.lanes, functions.size_of_convolution, functions.plan, functions.convolve):
        function.restype = ctypes.c_int64
    return Library(functions, _find_parallel())


def compiler() -> str | None:
    """The path of the C compiler: $CC if it is set, or the first of the usual ones."""
    names = (os.environ['CC'],) if os.environ.get('CC') else COMPILERS
    return next((path for path in map(shutil.which, names) if path), None)


def _compiled() -> Path | None:
    cc = compiler()
    if cc is None:
        _say('no C compiler (cc, gcc or clang) was found: sparse layers run on scipy, slowly')
        return None
    key = hashlib.sha256(b'\0'.join((SOURCE.read_bytes(), cc.encode(), _processor().encode()))).hexdigest()[:16]
    name = f'kernels_{key}.so'
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dnnshifter'
    if (folder / name).exists():
        return folder / name
    _say('compiling the sparse kernels, once for this machine')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix='dnnshifter_'))  # of this process alone
    temporary = folder / f'.{name}.{os.getpid()}.tmp'
    reason = ''
    for flags in ((*FLAGS, NATIVE), FLAGS):  # not every compiler knows the machine it runs on
        command = (cc, *flags, os.fspath(SOURCE), '-o', os.fspath(temporary))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            os.replace(temporary, folder / name)
            return folder / name
        reason = (done.stderr.strip().splitlines() or ['it says nothing'])[0]
    _say(f'{cc} cannot compile the sparse kernels ({reason}): sparse layers run on scipy, slowly')
    return None


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))
    except OSError:
        return ' '.join(platform.uname())


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


def _say(message: str) -> None:
    print(f'dnnshifter: {message}', file=sys.stderr, flush=True)
