"""The kernels are compiled on first use, and find threads to run on. Each case is a process of its own."""

import os
import subprocess
import sys

import pytest

from dnnshifter_ext import compiler
from tests import helpers

# Eight threads at once make the first calls, of one layer, with several numbers of images.
SCRIPT = '''
import sys
sys.modules['torch'] = None  # not to be had
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from dnnshifter_ext.sparse.convolution import Geometry, SparseConvolution
from dnnshifter_ext.sparse.filters import SparseFilters

generator = np.random.default_rng(0)
weight = (generator.normal(size=(8, 4, 3, 3)) * (generator.random((8, 4, 3, 3)) < 0.3)).astype(np.float32)
layer = SparseConvolution(SparseFilters.from_dense(weight), np.ones(8, np.float32), Geometry(4, 8, (3, 3)), low=0)

def is_right(batch):
    x = np.random.default_rng(batch).normal(size=(batch, 4, 9, 12)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    expected = np.maximum(np.einsum('ncyxij,ocij->noyx', windows, weight) + 1, 0)
    return all(np.abs(layer(x, threads) - expected).max() < 1e-4 for threads in (None, 1, 2))

with ThreadPoolExecutor(8) as pool:
    print(all(pool.map(is_right, [1, 16, 3, 33, 7, 1, 16, 20] * 2)))
'''
COMPILES = 'dnnshifter: compiling the sparse kernels, once for this machine\n'


def start(cache, **environment):
    environment = os.environ | {'XDG_CACHE_HOME': str(cache), 'OMP_NUM_THREADS': '2'} | environment
    return subprocess.Popen([sys.executable, '-c', SCRIPT], cwd=helpers.REPOSITORY, env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def said(process):
    """What it prints on stderr, after all its answers have been checked."""
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, 'True\n'), err
    return err


def compiled(cache):
    return sorted(path.name for path in (cache / 'dnnshifter').iterdir())


@pytest.fixture
def fast_compiler(needs_compiler, tmp_path):
    """One that does not optimise, and lets others catch up first."""
    script = tmp_path / 'cc'
    script.write_text(f'#!/bin/sh\nsleep 0.2\nexec {compiler.find()} "$@" -O0\n')
    script.chmod(0o755)
    return str(script)


def test_compiles_once_and_says_so_once(needs_compiler, tmp_path):
    assert said(start(tmp_path)) == COMPILES
    [name] = compiled(tmp_path)
    assert name.endswith('.so') and not name.startswith('.')
    assert said(start(tmp_path)) == ''
    assert compiled(tmp_path) == [name]


def test_two_processes_at_once(fast_compiler, tmp_path):
    both = [start(tmp_path, CC=fast_compiler) for _ in range(2)]
    assert {said(process) for process in both} <= {COMPILES, ''}
    assert len(compiled(tmp_path)) == 1


def test_a_cache_that_cannot_be_written(fast_compiler, tmp_path):
    cache, temporary = tmp_path / 'file', tmp_path / 'temporary'
    cache.write_text('not a folder')
    temporary.mkdir()
    assert said(start(cache, CC=fast_compiler, TMPDIR=str(temporary))) == COMPILES
    assert cache.read_text() == 'not a folder'


def test_a_compiler_that_does_not_know_the_machine(needs_compiler, tmp_path):
    script = tmp_path / 'cc'
    script.write_text(f'#!/bin/sh\ncase "$*" in *-march=native*) echo "bad value" >&2; exit 1;; esac\n'
                      f'exec {compiler.find()} "$@" -O0\n')
    script.chmod(0o755)
    assert said(start(tmp_path, CC=str(script))) == COMPILES


def test_no_compiler(tmp_path):
    (tmp_path / 'empty').mkdir()
    for nothing in ({'CC': '/nonexistent'}, {'CC': '', 'PATH': str(tmp_path / 'empty')}):
        assert said(start(tmp_path, **nothing)) == (
            'dnnshifter: no C compiler (cc, gcc or clang) was found: sparse layers run on scipy, slowly\n')


@pytest.mark.parametrize('script, reason', [
    ('exit 1', 'it says nothing'), ('echo "no room" >&2; echo more >&2; exit 3', 'no room')])
def test_a_broken_compiler(tmp_path, script, reason):
    broken = tmp_path / 'cc'
    broken.write_text(f'#!/bin/sh\n{script}\n')
    broken.chmod(0o755)
    assert said(start(tmp_path, CC=str(broken))) == COMPILES + (
        f'dnnshifter: {broken} cannot compile the sparse kernels ({reason}): sparse layers run on scipy, slowly\n')
    assert compiled(tmp_path) == []


SHARES_THREADS = """
import torch
import sklearn.datasets  # has an OpenMP runtime of its own
from dnnshifter_ext.sparse import library

address = library.load().parallel
runtimes = {}
for line in open('/proc/self/maps'):
    place, *_, path = line.split()
    if 'libgomp' in path:
        begin, end = (int(limit, 16) for limit in place.split('-'))
        runtimes.setdefault(path, []).append(begin <= address < end)
[used] = [path for path, places in runtimes.items() if any(places)]
print(len(runtimes), 'torch' in used)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_of_several_openmp_runtimes_torchs_is_used(needs_compiler):
    """Threads of another would find no core: torch's wait for more work in a loop."""
    process = subprocess.run([sys.executable, '-c', SHARES_THREADS], cwd=helpers.REPOSITORY, text=True, check=True,
                             capture_output=True)
    num_runtimes, is_torchs = process.stdout.split()
    if num_runtimes == '1':
        pytest.skip('there is only one here')
    assert is_torchs == 'True'
