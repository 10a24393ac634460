"""The benchmark of hybrid execution: that it measures what it says, on a network that takes a second."""

import json

import numpy as np
import pytest

from benchmarks import checkpoints, sparse_execution
from benchmarks.checkpoints import Checkpoint
from benchmarks.sparse_execution import CHANNELS_LAST, CONTIGUOUS, FORMS, HYBRID
from dnnshifter_ext import compiler

TINY = Checkpoint('tiny', 'cifar_vgg_5', 10, ratio=64, dead_share=0.2)

pytestmark = pytest.mark.skipif(compiler.find() is None, reason='no C compiler')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the checkpoint tiny.npz; few images, short pauses."""
    monkeypatch.setattr(sparse_execution, '_real_images', lambda like: (like, 'inputs'))
    monkeypatch.setattr(sparse_execution, 'PAUSE_S', 0)
    monkeypatch.setattr(sparse_execution, 'machine_gflops', lambda: {'registers': 1.0})
    monkeypatch.setitem(checkpoints.NETWORKS, 'tiny', TINY.network)
    np.savez(tmp_path / 'tiny.npz', **{name: tensor.numpy() for name, tensor in TINY.load().state_dict().items()})
    return tmp_path


def test_everything_is_measured_and_told(folder, capsys):
    output, figure = folder / 'out.json', folder / 'out.png'
    sparse_execution.main([f'--checkpoints={folder}', '--seconds=0', '--batch_sizes=2', '--layers',
                           f'--output={output}', f'--figure={figure}'])
    text = capsys.readouterr().out
    [result] = json.loads(output.read_text())['results']
    assert result['ratio'] == pytest.approx(64, rel=0.01) and result['changed_predictions'] == 0
    assert 0 < result['difference'] < 1e-5
    assert [timing['batch_size'] for timing in result['timings']] == [2]
    for timing in result['timings']:
        assert set(timing['p50_ms']) == set(timing['speedups']) == set(FORMS)
        assert timing['best_dense'] in (CONTIGUOUS, CHANNELS_LAST)
        assert timing['speedups'][timing['best_dense']]['median'] == 1
        assert all(ms > 0 for ms in timing['p50_ms'].values())
    weights = result['weights_bytes']
    assert weights[HYBRID] < weights['exact, dense'] < weights["the paper's rule"] <= weights[CONTIGUOUS]
    assert [layer['name'] for layer in result['layers']][0] == 'layers.0.conv'
    for layer in result['layers']:
        assert layer['density'] <= layer['kernels_left'] <= 1 and layer['gflops'] >= 0
        assert set(layer['ms']) == {'dense', 'sparse', 'whole kernels', 'compressed rows'}
    assert all(form in text for form in FORMS) and 'GFLOP/s' in text
    assert figure.read_bytes().startswith(b'\x89PNG')


def test_the_other_ways_to_use_sparsity_compute_the_same():
    import torch
    from torch import nn

    torch.manual_seed(0)
    layer = nn.Conv2d(6, 5, 3, stride=2, padding=1)
    mask = torch.rand(layer.weight.shape) < 0.1
    layer.weight.data.mul_(mask)
    x = torch.randn(4, 6, 9, 9)
    with torch.no_grad():
        expected = layer(x)
        kept = (layer.weight != 0).flatten(2).any(2)
        whole = sparse_execution._whole_kernels(layer, kept)
        torch.testing.assert_close(whole(x), expected)
        assert whole.num_nonzero == 9 * int(kept.sum()) > int(mask.sum())
        rows = sparse_execution._compressed_rows(layer, x)()
        expected = (expected - layer.bias[:, None, None]).transpose(0, 1).flatten(1)
        torch.testing.assert_close(rows, expected)


def test_the_machine_has_a_peak():
    peaks = sparse_execution.machine_gflops()
    assert len(peaks) == 4 and all(peak > 0.5 for peak in peaks.values())


@pytest.mark.parametrize('flag, complaint', [
    ('--batch_sizes=1,x', '--batch_sizes is written like'), ('--checkpoints=/nowhere', 'there is no folder /nowhere'),
    ('--output=/nowhere/x.json', 'there is no folder /nowhere'), ('--only=foo', "there is no 'foo'")])
def test_bad_flags_are_one_line(flag, complaint):
    with pytest.raises(SystemExit) as error:
        sparse_execution.main([flag])
    assert complaint in error.value.code and '\n' not in error.value.code
