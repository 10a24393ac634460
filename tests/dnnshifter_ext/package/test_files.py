"""Packages as files: old or new, never half; and readable where there is no torch."""

import subprocess
import sys

import numpy as np
import pytest

from dnnshifter_ext.package import PackageError, Variant, files
from tests import helpers
from tests.dnnshifter_ext.package.arrays import pruned


@pytest.fixture
def variants():
    return [Variant('a', '{}', {'w': pruned((30, 40), 0.1)}, {'level': 3})]


def test_round_trip(tmp_path, variants):
    files.save(tmp_path / 'p.dnns', variants)
    package = files.load(tmp_path / 'p.dnns')
    package.verify()
    np.testing.assert_array_equal(package['a'].dense('w'), variants[0].tensors['w'])
    assert len(package.content) == (tmp_path / 'p.dnns').stat().st_size
    assert helpers.list_files(tmp_path) == {'p.dnns'}


def test_errors_name_the_file(tmp_path, variants):
    path = tmp_path / 'p.dnns'
    files.save(path, variants)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackageError, match='p.dnns: .* cut short'):
        files.load(path)
    with pytest.raises(FileNotFoundError):
        files.load(tmp_path / 'none.dnns')


def test_variants_that_cannot_be_packed_leave_the_old_file(tmp_path, variants):
    files.save(tmp_path / 'p.dnns', variants)
    before = (tmp_path / 'p.dnns').read_bytes()
    with pytest.raises(PackageError):
        files.save(tmp_path / 'p.dnns', variants * 2)
    assert (tmp_path / 'p.dnns').read_bytes() == before
    assert helpers.list_files(tmp_path) == {'p.dnns'}


# With this in front, torch is not there; nor is isal, and the standard library does.
WITHOUT_TORCH = 'import sys\nsys.modules["torch"] = sys.modules["isal"] = None\n'


def test_read_without_torch(tmp_path, variants):
    files.save(tmp_path / 'p.dnns', variants)
    np.save(tmp_path / 'w.npy', variants[0].tensors['w'])
    code = WITHOUT_TORCH + '''
import numpy as np
import dnnshifter_ext, dnnshifter_ext.package
from dnnshifter_ext.package import files
package = files.load(sys.argv[1])
package.verify()
[variant] = package.variants
assert (variant.name, variant.profile, variant.structure()) == ('a', {'level': 3}, '{}')
expected = np.load(sys.argv[2])
assert (variant.dense('w') == expected).all()
assert (variant.sparse('w').values == expected[expected != 0]).all()
heavy = {'pandas', 'matplotlib', 'scipy', 'onnx', 'torchvision'} & set(sys.modules)
assert not heavy, heavy
'''
    subprocess.run([sys.executable, '-c', code, tmp_path / 'p.dnns', tmp_path / 'w.npy'], check=True,
                   cwd=helpers.REPOSITORY)


@pytest.mark.parametrize('moment', ['os.fsync', 'os.chmod', 'os.replace'])
def test_killed_while_writing(tmp_path, variants, moment):
    path = tmp_path / 'p.dnns'
    files.save(path, variants)
    before = path.read_bytes()
    code = WITHOUT_TORCH + f'''
import os, signal
import numpy as np
from dnnshifter_ext.package import Variant, files
{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
files.save(sys.argv[1], [Variant('b', '{{}}', {{'w': np.arange(1000)}}, {{}})])
'''
    killed = subprocess.run([sys.executable, '-c', code, path], cwd=helpers.REPOSITORY)
    assert killed.returncode == -9
    assert path.read_bytes() == before
    files.load(path).verify()
    files.save(path, variants)  # what the other left behind is not in the way
    assert path.read_bytes() == before
