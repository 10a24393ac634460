"""C sources of this package, compiled by the system's compiler on first use, and kept for the next time."""

from __future__ import annotations

from functools import cache
import hashlib
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import tempfile

COMPILERS = ('cc', 'gcc', 'clang')
FLAGS = ('-O3', '-std=gnu11', '-shared', '-fPIC')
NATIVE = '-march=native'


def find() -> str | None:
    """The path of the C compiler: $CC if it is set, or the first of the usual ones."""
    names = (os.environ['CC'],) if os.environ.get('CC') else COMPILERS
    return next((path for path in map(shutil.which, names) if path), None)


def compile_once(source: Path, name: str, otherwise: str, *options: str) -> Path | None:
    """The shared library made of `source`, compiled now if it never was on this machine; None without a compiler.

    name: of what is compiled; otherwise: what happens without it. Both are for people. options: for the compiler.
    """
    cc = find()
    if cc is None:
        _say(f'no C compiler (cc, gcc or clang) was found: {otherwise}')
        return None
    parts = (source.read_bytes(), *(text.encode() for text in (cc, _processor(), *options)))
    key = hashlib.sha256(b'\0'.join(parts)).hexdigest()[:16]
    file_name = f'{source.stem}_{key}.so'
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'dnnshifter'
    if (folder / file_name).exists():
        return folder / file_name
    _say(f'compiling {name}, once for this machine')
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix='dnnshifter_'))  # of this process alone
    temporary = folder / f'.{file_name}.{os.getpid()}.tmp'
    reason = ''
    for flags in ((*FLAGS, NATIVE), FLAGS):  # not every compiler knows the machine it runs on
        command = (cc, *flags, *options, os.fspath(source), '-o', os.fspath(temporary))
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            os.replace(temporary, folder / file_name)
            return folder / file_name
        reason = (done.stderr.strip().splitlines() or ['it says nothing'])[0]
    _say(f'{cc} cannot compile {name} ({reason}): {otherwise}')
    return None


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))
    except OSError:
        return ' '.join(platform.uname())


@cache
def _say(message: str) -> None:
    """Once in a process."""
    print(f'dnnshifter: {message}', file=sys.stderr, flush=True)
