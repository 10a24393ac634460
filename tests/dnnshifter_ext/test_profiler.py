"""Nothing here asserts a duration: clocks are passed in, or only the form of the answer is checked."""

import itertools
import json

import pytest
import torch
from torch import nn

from dnnshifter_ext import profiler
from dnnshifter_ext.profiler import (
    Latency,
    Profile,
    compare_latency,
    peak_memory_bytes,
    profile,
    profile_together,
)
from tests.dnnshifter_ext import nets


class Constant(nn.Module):
    """Predicts one class, whatever it sees."""

    def __init__(self, prediction, num_classes=3):
        super().__init__()
        self.register_buffer('logits', torch.eye(num_classes)[prediction])

    def forward(self, x):
        return x.flatten(1).sum(1, keepdim=True) * 0 + self.logits


def test_accuracy_is_the_share_of_all_examples_and_batches_are_read_once():
    def batches():
        yield torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 0, 1])
        yield torch.zeros(2, 1, 2, 2), torch.tensor([[2], [0]])  # labels with a dimension too many are fine

    models = {'zero': Constant(0), 'two': Constant(2)}
    found = profile_together(models, (1, 2, 2), batches(), (1,), budget_s=0)
    assert (found['zero'].accuracy, found['two'].accuracy) == (4 / 6, 1 / 6)
    assert found['zero'].num_examples == 6
    assert profile(Constant(0), (1, 2, 2), batch_sizes=(1,), budget_s=0).accuracy is None


def test_sizes():
    model = nets.Pair()
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.bias.fill_(-0.0)
    found = profile(model, (3, 8, 8), batch_sizes=(2,), budget_s=0)
    assert found.num_params == nets.num_params(model) == 6 * 28 + 4 * 55
    assert found.num_nonzero_params == 4 * 55
    assert found.size_bytes == 4 * found.num_params
    with_buffers = profile(nn.Sequential(nn.BatchNorm2d(5)), (5, 8, 8), batch_sizes=(2,), budget_s=0)
    assert with_buffers.size_bytes == 4 * 20 + 8


def test_latency_of_a_clock_we_control():
    """Each reading of the clock is one second later than the last, so that each run takes 1000 ms."""
    clock = itertools.count()
    found = compare_latency({'a': nn.Identity(), 'b': nn.Identity()}, (3,), batch_size=7, budget_s=10,
                            clock_s=lambda: next(clock))
    assert found['a'] == found['b'] == Latency('cpu', 7, 1000, 1000, 1000, 10, torch.get_num_threads())
    # Readings: two per run, two warm-up runs and ten measured ones per model.
    assert next(clock) == 2 * 2 * (2 + 10)


def test_percentiles_and_a_least_number_of_runs():
    durations = iter([9, 9, *range(1, 12)])
    readings = itertools.chain.from_iterable((0, next(durations)) for _ in range(13))
    found = compare_latency({'a': nn.Identity()}, (3,), budget_s=66, clock_s=lambda: next(readings))['a']
    assert (found.p10_ms, found.median_ms, found.p90_ms, found.num_runs) == (2000, 6000, 10000, 11)
    clock = itertools.count(step=100)
    found = compare_latency({'a': nn.Identity()}, (3,), budget_s=0, clock_s=lambda: next(clock))['a']
    assert found.num_runs == 3


def test_models_are_timed_in_turn(monkeypatch):
    order = []

    def run_ms(model, inputs, clock_s):
        order.append(model.name)
        return 100.0

    monkeypatch.setattr(profiler, '_cpu_run_ms', run_ms)

    def named(name):
        model = nn.Identity()
        model.name = name
        return model

    compare_latency({'a': named('a'), 'b': named('b')}, (3,), budget_s=0.4)
    assert order == ['a', 'a', 'b', 'b', *'abbaabba']


def test_profile_measures_each_batch_size_and_survives_json():
    found = profile(nets.LeNet(), (1, 6, 6), batch_sizes=(1, 4), budget_s=0)
    assert [(latency.device, latency.batch_size) for latency in found.latencies] == [('cpu', 1), ('cpu', 4)]
    for latency in found.latencies:
        assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
        assert latency.num_runs == profiler.MIN_RUNS
    assert found.latency('cpu', 4) is found.latencies[1]
    with pytest.raises(LookupError, match='no latency was measured on cuda at batch size 4'):
        found.latency('cuda', 4)
    assert Profile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_models_and_random_generators_stay_as_they_are():
    model = nets.VGG().train()
    before, state = nets.state_of(model), torch.get_rng_state()
    profile(model, (3, 8, 8), [(nets.images(), torch.zeros(4, dtype=torch.long))], (2,), budget_s=0)
    assert model.training and nets.same_state(before, nets.state_of(model))
    assert torch.equal(torch.get_rng_state(), state)


def test_peak_memory_counts_what_is_alive_at_once():
    class Chain(nn.Module):
        """100 floats in; 100, 50, 25 floats after: the peak is at the first step."""

        def forward(self, x):
            return torch.tanh(torch.tanh(x)[:, ::2].contiguous())[:, ::2].contiguous()

    assert peak_memory_bytes(Chain(), torch.zeros(1, 100)) == 4 * (100 + 100)

    class Kept(nn.Module):
        def forward(self, x):
            first = torch.tanh(x)
            second = torch.tanh(first)
            return second + x

    assert peak_memory_bytes(Kept(), torch.zeros(1, 100)) == 4 * 300

    class Views(nn.Module):
        """Views and in-place operations take no room of their own."""

        def forward(self, x):
            return x.view(-1).relu_().view(10, 10)

    assert peak_memory_bytes(Views(), torch.zeros(1, 100)) == 4 * 100
    model = nn.Linear(100, 10)
    assert peak_memory_bytes(model, torch.zeros(1, 100)) == 4 * (1010 + 100 + 10)


def test_peak_memory_falls_with_the_channels():
    small, large = nets.VGG(plan=(8, 8)), nets.VGG(plan=(32, 32))
    x = nets.images(16)
    assert peak_memory_bytes(small, x) < peak_memory_bytes(large, x) / 3


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_measured_beside_the_cpu():
    batches = [(nets.images(), torch.zeros(4, dtype=torch.long))]
    found = profile(nets.VGG(), (3, 8, 8), batches, (1, 8), device='cuda', budget_s=0)
    assert [(latency.device, latency.batch_size) for latency in found.latencies] == [
        ('cpu', 1), ('cpu', 8), ('cuda', 1), ('cuda', 8)]
    assert all(m.peak_bytes > found.size_bytes for m in found.peak_memory)
