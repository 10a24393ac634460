"""The converter's loops are compiled on first use, and numpy takes over where they cannot be. Each a process."""

import os
import subprocess
import sys

import pytest

from dnnshifter_ext import compiler
from tests import helpers

SCRIPT = """
import torch
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.facts import Facts
from tests.dnnshifter_ext import nets

conversion = convert(nets.sparsify(nets.VGG(), density=0.1), nets.images())
print(conversion.plan.num_removed > 0, *{type(facts).__name__ for facts in Facts(conversion.fused).layers.values()})
"""


def run(cache, **environment):
    """(what it prints, what it says on stderr)."""
    done = subprocess.run(
        [sys.executable, '-c', SCRIPT], cwd=helpers.REPOSITORY, text=True, capture_output=True, check=True,
        env=os.environ | {'XDG_CACHE_HOME': str(cache), 'OMP_NUM_THREADS': '1'} | environment)
    return done.stdout.strip(), done.stderr


@pytest.mark.skipif(compiler.find() is None, reason='no C compiler')
def test_compiled_once_for_each_type(tmp_path):
    out, err = run(tmp_path)
    assert out == 'True LayerFactsInC'
    assert err.splitlines() == [f"dnnshifter: compiling the converter's loops for {dtype}, once for this machine"
                                for dtype in ('float32', 'float64')]
    assert run(tmp_path) == ('True LayerFactsInC', '')


def test_without_a_compiler_numpy_takes_over_and_says_so_once(tmp_path):
    out, err = run(tmp_path, CC='/nonexistent')
    assert out == 'True LayerFacts'
    assert err == ('dnnshifter: no C compiler (cc, gcc or clang) was found: '
                   'models are converted with numpy, at half the speed\n')
