"""The benchmark of the package: that it measures what it says, on a network that takes a second."""

import json

import numpy as np
import pytest

from benchmarks import checkpoints, package
from benchmarks.checkpoints import Checkpoint

TINY = Checkpoint('tiny', 'cifar_vgg_5', 10, ratio=64, dead_share=0.4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the checkpoint tiny.npz."""
    monkeypatch.setitem(checkpoints.NETWORKS, 'tiny', TINY.network)
    np.savez(tmp_path / 'tiny.npz', **{name: tensor.numpy() for name, tensor in TINY.load().state_dict().items()})
    return tmp_path


def test_everything_is_measured_and_told(folder, capsys):
    path = folder / 'out.json'
    package.main([f'--checkpoints={folder}', '--halve=tiny', '--rounds=1', f'--output={path}'])
    text = capsys.readouterr().out
    whole, half = json.loads(path.read_text())['results']
    assert (whole['name'], half['name']) == ('tiny', 'tiny, halved')
    assert 0.4 < half['num_nonzero'] / whole['num_nonzero'] < 0.6
    for result in (whole, half):
        assert result['num_nonzero'] * 23 / 8 < result['package_bytes'] < result['plain_bytes']
        assert result['position_entropy_bytes'] * 0.9 < result['position_bytes'] < result['package_bytes'] / 3
        assert 23 < result['value_bits'] < 30
        assert all(len(times) == 1 and times[0] > 0 for times in result['times_ms'].values())
        assert f"{result['package_bytes']:,} bytes" in text
    assert all(way in text for way in package.WAYS)


@pytest.mark.parametrize('flags, expected', [
    (['--halve=none'], "--halve: there is no 'none'"), (['--rounds=0'], '--rounds must be at least 1'),
    (['--only=none'], "--only: there is no 'none'"), (['--output=missing/x.json'], 'no folder missing')])
def test_mistakes_are_one_line(folder, flags, expected):
    with pytest.raises(SystemExit) as error:
        package.main([f'--checkpoints={folder}', *flags])
    assert expected in error.value.code and '\n' not in error.value.code
