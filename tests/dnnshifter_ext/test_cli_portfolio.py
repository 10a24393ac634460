"""The command `portfolio`, typed as a user would: what it writes, what it says, and what it refuses."""

import json
import os
import subprocess
import sys

import onnxruntime
import pytest
import torch

from dnnshifter_ext import load, paths, save
from dnnshifter_ext.cli import portfolio
from dnnshifter_ext.install import install
from dnnshifter_ext.package import files
from open_lth.cli import runner_registry
from tests import helpers
from tests.dnnshifter_ext import nets


@pytest.fixture(autouse=True)
def installed():
    install()


def make_level(run, level, width):
    folder = run / f'level_{level}' / paths.EXPERIMENT
    folder.mkdir(parents=True)
    torch.manual_seed(level)
    save(nets.sparsify(nets.VGG(plan=(width, 'M', width))), paths.model(folder), (3, 8, 8))
    pruned = {'accuracy': 0.9 - level / 100, 'num_params': 1234, 'num_nonzero_params': 567, 'latencies': []}
    (folder / 'profile.json').write_text(json.dumps(
        {'level': level, 'compression_ratio': 2.0**level, 'unfused': {}, 'fused': {}, 'pruned': pruned,
         'hybrid': {'accuracy': 0.5} if level == 2 else None, 'execution': {'layers': []}}))


@pytest.fixture
def run(tmp_path):
    """The folder of a run with three levels, of which 0 and 2 are optimal. `out` is beside it."""
    run = tmp_path / 'lottery_1' / 'replicate_1'
    for level, width in enumerate((12, 10, 6)):
        make_level(run, level, width)
    (run / 'portfolio.csv').write_text('level,accuracy_pruned,comparable_latency_ms,pareto_optimal\n'
                                       '0,0.9,4.5,True\n1,0.89,4.4,False\n2,0.88,2.5,True\n')
    (tmp_path / 'out').mkdir()
    return run


@pytest.fixture
def out(run):
    return run.parent.parent / 'out'


@pytest.fixture
def packed(run, out):
    assert typed('pack', run, '-o', out / 'p.dnns').status == 0
    return out / 'p.dnns'


def typed(*words):
    return helpers.run_main('portfolio', *words)


def refused(outcome, *expected):
    helpers.assert_one_line_error(outcome, *expected)
    assert outcome.out == ''


# ---- what it makes, and says

def test_pack_takes_the_optimal_levels_smallest_first(run, out):
    outcome = typed('pack', run, '-o', out / 'p.dnns')
    assert (outcome.status, outcome.err) == (0, '')
    package = files.load(out / 'p.dnns')
    assert [variant.name for variant in package.variants] == ['level_2', 'level_0']
    assert package['level_2'].profile == {
        'level': 2, 'compression_ratio': 4.0, 'accuracy': 0.88, 'num_params': 1234, 'num_nonzero_params': 567,
        'latencies': [], 'comparable_latency_ms': 2.5, 'pareto_optimal': True,
        'hybrid': {'accuracy': 0.5}, 'execution': {'layers': []}}
    assert 'hybrid' not in package['level_0'].profile
    assert helpers.list_files(out) == {'p.dnns'}
    lines = outcome.out.splitlines()
    assert lines[0].startswith('variant  ratio  accuracy %  parameters')
    assert lines[1].split()[:3] == ['level_2', '4.0', '88.00'] and lines[1].endswith('optimal')
    assert lines[-1] == f'Package: {out / "p.dnns"}'
    assert typed('list', out / 'p.dnns').out.splitlines() == lines[:-2]
    assert f'2 variants in {(out / "p.dnns").stat().st_size:,} bytes.' in lines


def test_pack_all(run, out):
    assert typed('pack', run, '--all', '--output', out / 'p.dnns').status == 0
    package = files.load(out / 'p.dnns')
    assert [variant.name for variant in package.variants] == ['level_2', 'level_1', 'level_0']
    assert package['level_1'].profile['pareto_optimal'] is False


def test_unpack_gives_the_levels_back(run, out, packed):
    outcome = typed('unpack', packed, '-o', out)
    assert outcome.out.splitlines() == [f'{out}/level_2.pth', f'{out}/level_0.pth']
    for level in (0, 2):
        found, expected = load(out / f'level_{level}.pth'), load(run / f'level_{level}/dnnshifter/model.pth')
        assert found.code == expected.code and found.meta == expected.meta
        for name, tensor in expected.state_dict().items():
            assert found.state_dict()[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_unpack_one(out, packed):
    assert typed('unpack', packed, '-o', out, '--variant', 'level_2').out == f'{out}/level_2.pth\n'
    assert helpers.list_files(out) == {'p.dnns', 'level_2.pth'}


def test_export_onnx(run, out, packed):
    outcome = typed('export-onnx', packed, '-o', out, '--variant', 'level_2')
    assert (outcome.out, outcome.err) == (f'{out}/level_2.onnx\n', '')
    x = nets.images()
    session = onnxruntime.InferenceSession((out / 'level_2.onnx').read_bytes(), providers=['CPUExecutionProvider'])
    [output] = session.run(None, {'input': x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(output), load(run / 'level_2/dnnshifter/model.pth')(x),
                                   rtol=1e-5, atol=1e-6)


def test_in_a_shell(run, out):
    shell = subprocess.run([sys.executable, 'main.py', 'portfolio', 'pack', run, '-o', out / 'p.dnns'],
                           cwd=helpers.REPOSITORY, text=True, capture_output=True)
    assert (shell.returncode, shell.stderr) == (0, '')
    assert shell.stdout == typed('pack', run, '-o', out / 'p.dnns').out


def test_verify(packed):
    assert typed('verify', packed).out == f'{packed} is intact: 2 variants, every checksum, every block.\n'
    content = packed.read_bytes()
    packed.write_bytes(content[:-200])
    refused(typed('verify', packed), f'{packed}: {len(content)} bytes were written, and {len(content) - 200} are here')
    packed.write_bytes(content[:-200] + bytes(200))
    refused(typed('verify', packed), f'{packed}: the file is damaged: its checksum is wrong')


def test_help_and_location(run):
    assert f'portfolio [...] => {runner_registry.DESCRIPTIONS["portfolio"]}' in helpers.run_main('--help').out
    shown = helpers.run_main('portfolio', '--help').out
    assert all(action in shown for action in portfolio.ACTIONS)
    assert typed('pack', run, '-o', 'x.dnns', '--display_output_location').out == 'x.dnns\n'
    assert typed('list', 'x.dnns', '--display_output_location').out == 'x.dnns\n'


# ---- what it refuses

@pytest.mark.parametrize('words, expected', [
    ([], ['portfolio pack|list|verify|unpack|export-onnx PATH']), (['list'], ['PATH']), (['delete', 'x'], ['PATH']),
    (['pack', 'x'], ['portfolio pack needs -o']), (['list', 'x', '-o', 'y'], ['portfolio list takes no -o']),
    (['verify', 'x', '--all'], ['takes no --all']), (['pack', 'x', '-o', 'y', '--variant=a'], ['takes no --variant']),
    (['list', 'none.dnns'], ['No such file', 'none.dnns'])])
def test_bad_words(words, expected):
    refused(typed(*words), *expected)


@pytest.mark.parametrize('spoil, expected', [
    (lambda run: (run / 'portfolio.csv').unlink(), ['has no portfolio.csv', 'lottery_HASH/replicate_N']),
    (lambda run: (run / 'portfolio.csv').write_text('a,b\n1,2\n'), ['portfolio.csv is no table']),
    (lambda run: (run / 'portfolio.csv').write_text('level,comparable_latency_ms,pareto_optimal\n1,2,False\n'),
     ['portfolio.csv has no optimal variant']),
    (lambda run: (run / 'level_2/dnnshifter/profile.json').write_text('{}'), ['profile.json is damaged', 'level']),
    (lambda run: (run / 'level_2/dnnshifter/profile.json').unlink(), ['No such file', 'level_2']),
    (lambda run: (run / 'level_2/dnnshifter/model.pth').write_bytes(b'x'), ['model.pth: not a model file']),
])
def test_runs_that_cannot_be_packed_leave_the_old_package(run, out, spoil, expected):
    (out / 'p.dnns').write_text('an older one')
    spoil(run)
    refused(typed('pack', run, '-o', out / 'p.dnns'), *expected)
    assert helpers.list_files(out) == {'p.dnns'} and (out / 'p.dnns').read_text() == 'an older one'


def test_outputs_that_cannot_be_written_are_refused(run, out, packed, monkeypatch):
    refused(typed('pack', run, '-o', out / 'missing' / 'p.dnns'), 'there is no folder')
    refused(typed('pack', run, '-o', out), 'is a folder')
    refused(typed('unpack', packed, '-o', out / 'missing'), 'there is no folder')
    refused(typed('unpack', packed, '-o', out, '--variant', 'level_9'), "no variant 'level_9', only level_2, level_0")
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    refused(typed('unpack', packed, '-o', out), 'not writable')


def test_a_file_that_is_no_package(out):
    (out / 'p.dnns').write_text('hello')
    for words in (['list'], ['verify'], ['unpack', '-o', out], ['export-onnx', '-o', out]):
        refused(typed(words[0], out / 'p.dnns', *words[1:]), 'p.dnns: not a portfolio package')


def test_a_full_disk_leaves_the_old_package(run, out, monkeypatch):
    (out / 'p.dnns').write_text('an older one')
    def full(descriptor):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    refused(typed('pack', run, '-o', out / 'p.dnns'), 'No space left')
    assert helpers.list_files(out) == {'p.dnns'} and (out / 'p.dnns').read_text() == 'an older one'
