"""The command `export`, typed as a user would: what it writes, what it says, and what it refuses."""

import os
import re
import sys

import onnxruntime
import pytest
import torch

from dnnshifter_ext import load, onnx, paths, save
from dnnshifter_ext.install import install
from open_lth.cli import runner_registry
from tests import helpers
from tests.dnnshifter_ext import nets

to_onnx = onnx.to_onnx


@pytest.fixture(autouse=True)
def installed():
    install()


@pytest.fixture
def folder(tmp_path):
    """Where the model is, small.pth; the output goes to its subfolder `out`."""
    (tmp_path / 'out').mkdir()
    save(nets.sparsify(nets.VGG()), tmp_path / 'small.pth')
    return tmp_path


def run(folder, *flags, model='small.pth', output='out/small.onnx'):
    return helpers.run_main('export', f'--model={folder / model}', f'--output={folder / output}', *flags)


def assert_refused(folder, outcome, *expected, left=()):
    helpers.assert_one_line_error(outcome, *expected)
    assert helpers.list_files(folder / 'out') == set(left)
    assert outcome.out == ''


def assert_same(onnx_file, model, x):
    session = onnxruntime.InferenceSession(onnx_file.read_bytes(), providers=['CPUExecutionProvider'])
    [output] = session.run(None, {'input': x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), model(x), rtol=1e-5, atol=1e-6)


# ---- what it makes, and says

def test_what_convert_wrote_goes_on_to_onnx(folder):
    model = nets.sparsify(nets.VGG())
    torch.save(model.state_dict(), folder / 'weights.pth')
    outcome = helpers.run_main('convert', '--model=tests.dnnshifter_ext.nets:VGG', '--input_shape=3x8x8',
                               f'--checkpoint={folder / "weights.pth"}', f'--output={folder / "small.pth"}')
    assert outcome.status == 0, outcome.err
    (folder / 'out' / 'small.onnx').write_text('an older one')
    outcome = run(folder)
    assert (outcome.status, outcome.err) == (0, '')
    assert helpers.list_files(folder / 'out') == {'small.onnx'}
    small = load(folder / 'small.pth')
    assert nets.num_params(small) < nets.num_params(model)
    assert_same(folder / 'out' / 'small.onnx', small, nets.images(num=3))
    assert_same(folder / 'out' / 'small.onnx', model, nets.images(num=3))
    size = (folder / 'out' / 'small.onnx').stat().st_size
    assert outcome.out.rstrip().endswith(f'small.onnx ({size:,} bytes), input: batch x 3 x 8 x 8')
    assert 'on 16 random inputs of 3x8x8' in outcome.out
    assert 'changed predictions  0 of 17' in outcome.out
    assert 0 < float(re.search(r'max \|difference\| +(\S+),', outcome.out)[1]) < 1e-5


def test_a_level_of_a_run_by_its_folder_and_the_shape_by_its_flag(folder):
    level = folder / 'level_3' / 'dnnshifter'
    level.mkdir(parents=True)
    model = nets.sparsify(nets.LeNet())
    save(model, paths.model(level), (3, 8, 8))  # the flag comes first
    outcome = run(folder, '--input_shape=1x6x6', model='level_3/dnnshifter')
    assert (outcome.status, outcome.err) == (0, '')
    assert_same(folder / 'out' / 'small.onnx', model, nets.images(6, 1))


def test_help_and_location(folder):
    assert f'export [...] => {runner_registry.DESCRIPTIONS["export"]}' in helpers.run_main('--help').out
    for flag in ('--model', '--output', '--input_shape'):
        assert flag in helpers.run_main('export', '--help').out
    assert run(folder, '--display_output_location').out == f'{folder}/out/small.onnx\n'


# ---- what it refuses: one line, status 2, nothing written

@pytest.mark.parametrize('flags, expected', [
    ([], ['small.pth does not say what its inputs look like', '--input_shape']),
    (['--input_shape=3,8,8'], ['--input_shape is written like 3x32x32']),
    (['--input_shape=1x8x8'], ['small.pth cannot be exported', 'shape (1, 1, 8, 8)', '3 channels']),
    (['--input_shape=3x2x2'], ['small.pth cannot be exported', 'shape (1, 3, 2, 2)']),
    (['--input_shape=192'], ['small.pth cannot be exported', 'shape (1, 192)']),
    (['--input_shape=99999x99999x99999x99999'], ['do not fit into memory']),
    (['--model='], ['export needs --model']),
    (['--output='], ['export needs --output']),
])
def test_bad_flags(folder, flags, expected):
    assert_refused(folder, run(folder, *flags), *expected)


@pytest.mark.parametrize('write, expected', [
    (lambda path: path.unlink(), ['No such file', 'small.pth']),
    (lambda path: (path.unlink(), path.mkdir()), ['No such file', 'small.pth/model.pth']),
    (lambda path: path.write_bytes(b''), ['small.pth: not a model file, or damaged', '`convert`']),
    (lambda path: path.write_bytes(path.read_bytes()[:-50]), ['small.pth: not a model file, or damaged']),
    (lambda path: torch.save(nets.VGG().state_dict(), path), ['small.pth: not a model file: its format', '`convert`']),
], ids=['missing', 'folder', 'empty', 'truncated', 'state dict'])
def test_bad_models(folder, write, expected):
    write(folder / 'small.pth')
    assert_refused(folder, run(folder, '--input_shape=3x8x8'), *expected)


def test_a_model_that_fails_the_check_is_not_written(folder, monkeypatch):
    def forgetful(model, inputs):
        model.fc.bias.data += 0.1
        content = to_onnx(model, inputs)
        model.fc.bias.data -= 0.1
        return content

    monkeypatch.setattr(onnx, 'to_onnx', forgetful)
    (folder / 'out' / 'small.onnx').write_text('an older one')
    assert_refused(folder, run(folder, '--input_shape=3x8x8'), 'cannot be exported', 'differ by 0.1 ',
                   left=['small.onnx'])
    assert (folder / 'out' / 'small.onnx').read_text() == 'an older one'


@pytest.mark.parametrize('package', ['onnx', 'onnxscript', 'onnxruntime'])
def test_a_missing_package(folder, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(folder, run(folder, '--input_shape=3x8x8'), f'import of {package}',
                   'pip install onnx onnxscript onnxruntime')


def test_outputs_that_cannot_be_written_are_refused_before_any_work(folder, monkeypatch):
    monkeypatch.setattr('dnnshifter_ext.export.load', None)
    before = (folder / 'small.pth').read_bytes()
    assert_refused(folder, run(folder, output='missing/small.onnx'), '--output', 'no folder', 'missing')
    assert_refused(folder, run(folder, output='out'), '--output', 'out is a folder')
    assert_refused(folder, run(folder, output='out/../small.pth'), 'would replace the model')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert_refused(folder, run(folder), 'not writable')
    assert (folder / 'small.pth').read_bytes() == before
