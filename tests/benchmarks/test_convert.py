"""The benchmark of the converter: that it measures what it says, on a network that takes a second."""

import json

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, convert, converters
from benchmarks.checkpoints import Checkpoint
from dnnshifter_ext.costs import size_bytes

TINY = Checkpoint('tiny', 'cifar_vgg_5', 10, ratio=64, dead_share=0.4)
OURS, PAPER = converters.OURS
PEERS = [name for name, peer in converters.PEERS.items() if peer.is_installed and name not in converters.TIMED_ONLY]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the checkpoint tiny.npz. For speed few inputs, and memory is measured in this very process."""
    monkeypatch.setattr(convert, 'measure_memory', lambda checkpoint: {'here': convert.measure_memory_here(checkpoint)})
    monkeypatch.setattr(convert, 'MEMORY_RUNS', 1)
    monkeypatch.setattr(convert, 'NUM_INPUTS', 8)
    monkeypatch.setattr(convert, 'NUM_EXAMPLES', 2)
    monkeypatch.setitem(checkpoints.NETWORKS, 'tiny', TINY.network)
    np.savez(tmp_path / 'tiny.npz', **{name: tensor.numpy() for name, tensor in TINY.load().state_dict().items()})
    return tmp_path


def run(capsys, *flags):
    convert.main(['--rounds=1', '--seconds=0.001', '--batch_sizes=1', *map(str, flags)])
    return capsys.readouterr().out


def failure(*flags):
    with pytest.raises(SystemExit) as error:
        convert.main(list(map(str, flags)))
    assert '\n' not in error.value.code
    return error.value.code


def test_everything_is_measured_and_told(folder, capsys):
    path = folder / 'out.json'
    text = run(capsys, f'--checkpoints={folder}', f'--output={path}')
    [result] = json.loads(path.read_text())['results']
    assert result['checkpoint'] == 'tiny' and not result['failures']
    assert set(result['stages']) == set(converters.installed())
    for times in result['stages'].values():
        assert len(times) == 1
        assert all(stage[name] > 0 for stage in times for name in ('capture_ms', 'analysis_ms', 'rebuilding_ms'))
    quality = result['quality']
    assert list(quality) == ['sparse', 'fused by torch', OURS, PAPER, *PEERS]
    assert list(result['latencies']['eager']['1']) == list(quality)
    assert quality['sparse']['difference'] == 0 < quality['fused by torch']['difference']
    assert quality[OURS]['num_params'] < quality[PAPER]['num_params'] < quality['fused by torch']['num_params']
    assert quality[OURS]['difference'] < 1e-5 * result['output_range'] < quality[PAPER]['difference']
    assert_plausible(convert.Memory(**result['memory']['here']), quality[OURS]['num_bytes'])
    for shown in (*quality, f"{quality[OURS]['num_params']:,}", 'threads', 'speed-up', 'all but capture'):
        assert shown in text


def assert_plausible(memory, converted_bytes):
    """The converted model is alive at the end, beside the input model; the proof needs both in float64."""
    assert 0.9 * converted_bytes < memory.conversion_bytes < 3 * memory.model_bytes
    assert memory.with_proof_bytes > 2 * memory.model_bytes


@pytest.mark.full
def test_memory_is_measured_in_processes_of_their_own():
    converted, _ = converters.dnnshifter(TINY.load(), TINY.inputs(2))
    memory = convert.measure_memory(TINY)
    assert len(memory) == 2
    for measured in memory.values():
        assert_plausible(measured, size_bytes(converted))


@pytest.mark.skipif('torch-pruning' not in PEERS, reason='torch-pruning is not installed')
def test_torch_pruning_follows_the_published_rule():
    model, inputs = TINY.load(), TINY.inputs(2)
    [num_params, by_rule] = [sum(p.numel() for p in converter(TINY.load(), inputs)[0].parameters())
                             for converter in (converters.torch_pruning, converters.dnnshifter_paper)]
    assert num_params == by_rule < sum(p.numel() for p in model.parameters())


@pytest.mark.skipif('torch-simplify' not in PEERS, reason='torch-simplify is not installed')
def test_torch_simplify_is_taken_apart_into_the_steps_of_its_own_main_function():
    import simplify
    inputs = TINY.inputs(2)
    model, _ = converters.torch_simplify(TINY.load(), inputs)
    whole = simplify.simplify(TINY.load(), inputs[:1])
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in whole.state_dict().items()}
    with torch.no_grad():
        assert torch.equal(model(inputs), whole(inputs))


def test_a_missing_peer_is_named_and_left_out(folder, capsys, monkeypatch):
    monkeypatch.setattr(convert, 'measure_memory', lambda checkpoint: {})
    for name, peer in converters.PEERS.items():
        absent = converters.Peer(peer.package, f'no_{peer.module}', peer.convert)
        monkeypatch.setitem(converters.PEERS, name, absent)
    text = run(capsys, f'--checkpoints={folder}')
    assert 'torch-pruning is not installed' in text and 'torch-simplify is not installed' in text
    assert f'\n{OURS} ' in text and '\ntorch-pruning  ' not in text and '\nmemory' not in text


def test_a_tool_that_fails_is_reported_and_the_others_go_on():
    def broken(model, inputs):
        raise KeyError('conv\nmore')

    tools = {'broken': broken, OURS: converters.dnnshifter}
    stages, converted, failures = convert.time_conversions(TINY.load(), TINY.inputs(2), tools, rounds=1)
    assert list(stages) == list(converted) == [OURS]
    assert failures == {'broken': "KeyError: 'conv\\nmore'"}


def test_a_peer_never_sees_the_model_itself():
    model = TINY.load()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def spoiling(own, inputs):
        for tensor in own.state_dict().values():
            tensor.zero_()
        return own, converters.Stages(1, 1, 1, 1)

    convert.time_conversions(model, TINY.inputs(1), {'spoiling': spoiling}, rounds=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_made_up_networks_repeat_and_are_as_sparse_as_they_say():
    model, again = TINY.load(), TINY.load()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))
    weights = [weight for weight in model.parameters() if weight.ndim > 1]
    assert sum(w.numel() for w in weights) / sum(int(w.count_nonzero()) for w in weights) == pytest.approx(64, rel=1e-3)
    dead = [float((w.flatten(1).abs().sum(1) == 0).float().mean()) for w in weights]
    assert min(dead[:-1]) > 0.25 and dead[-1] < 0.25


@pytest.mark.parametrize('flags, told', [
    (['--only=nobody'], 'nobody'),
    (['--rounds=0'], '--rounds'),
    (['--batch_sizes=1,x'], '--batch_sizes'),
    (['--backends=eager,gpu'], 'gpu'),
    (['--checkpoints=nowhere'], 'nowhere'),
    (['--output=nowhere/out.json'], 'nowhere'),
])
def test_mistakes_are_told_in_one_line(flags, told):
    assert told in failure(*flags)


def test_checkpoints_that_cannot_be_used_are_named(folder, tmp_path_factory):
    assert 'holds no *.npz' in failure(f'--checkpoints={tmp_path_factory.mktemp("empty")}')
    np.savez(folder / 'vgg16_of_another_shape.npz', **np.load(folder / 'tiny.npz'))
    assert 'does not fit cifar_vgg_16' in failure(f'--checkpoints={folder}', '--only=vgg16_of_another_shape')
    (folder / 'tiny_damaged.npz').write_bytes(b'no archive')
    assert 'tiny_damaged.npz' in failure(f'--checkpoints={folder}')
    (folder / 'tiny_damaged.npz').unlink()
    (folder / 'tiny.npz').rename(folder / 'unknown.npz')
    assert 'unknown.npz' in failure(f'--checkpoints={folder}')
