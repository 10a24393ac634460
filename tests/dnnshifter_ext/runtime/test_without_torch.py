"""The runtime on a machine that has no torch, as edge devices are."""

import os
from pathlib import Path
import subprocess
import sys
import venv

import numpy as np
import pytest

from tests.dnnshifter_ext.runtime import portfolios

ROOT = Path(__file__).parents[3]
EDGE_PACKAGES = ('numpy', 'onnx', 'onnxruntime')

# Each back end answers a batch with each variant, and the answers are saved. Arguments: folder, 'hide' or 'absent'.
SCRIPT = '''
import sys
folder, torch_is = sys.argv[1:]
if torch_is == 'hide':
    sys.modules['torch'] = None
else:
    import importlib.util
    assert importlib.util.find_spec('torch') is None
import numpy as np
import dnnshifter_ext
from dnnshifter_ext.runtime import Fixed
from open_lth.foundations.errors import UserError
batch = np.load(f'{folder}/batch.npy')
outputs = {}
for backend in ('numpy', 'onnxruntime'):
    with dnnshifter_ext.Runtime(f'{folder}/portfolio.dnns', backend=backend, policy=Fixed()) as runtime:
        for variant in runtime.stats().variants:
            runtime.switch_to(variant)
            outputs[f'{backend} {variant}'] = runtime.infer(batch)
try:
    dnnshifter_ext.Runtime(f'{folder}/portfolio.dnns', backend='torch')
except UserError as error:
    print(error)
assert not any(name.partition('.')[0] in ('torch', 'torchvision') for name, module in sys.modules.items() if module)
np.savez(f'{folder}/outputs.npz', **outputs)
'''


def check(folder: Path, python: str, torch_is: str) -> None:
    (folder / 'portfolio.dnns').write_bytes(portfolios.content())
    batch = portfolios.images(19)
    np.save(folder / 'batch.npy', batch)
    done = subprocess.run([python, '-c', SCRIPT, str(folder), torch_is], capture_output=True, text=True, cwd=folder,
                          env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert "back end 'torch' is not installed" in line and 'backend=onnxruntime or numpy' in line
    wanted = portfolios.expected(batch)
    with np.load(folder / 'outputs.npz') as outputs:
        assert len(outputs.files) == 2 * len(wanted)
        for key in outputs.files:
            assert portfolios.is_close(outputs[key], wanted[key.split()[1]]), key


def test_it_answers_where_torch_cannot_be_imported(tmp_path):
    check(tmp_path, sys.executable, 'hide')


@pytest.mark.full
def test_it_answers_in_an_environment_without_torch(tmp_path):
    """With nothing but what an edge device needs: numpy, and ONNX Runtime for that back end."""
    venv.create(tmp_path / 'venv', with_pip=True)
    python = str(tmp_path / 'venv' / 'bin' / 'python')
    subprocess.run([python, '-m', 'pip', 'install', '--quiet', *EDGE_PACKAGES], check=True)
    check(tmp_path, python, 'absent')
