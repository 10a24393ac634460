"""Nothing here asserts a duration: clocks are passed in, or only the form of the answer is checked."""

import itertools
import json

import pytest
import torch
from torch import nn

from dnnshifter_ext import profiler
from dnnshifter_ext.profiler import Profile, Speedup, compare_latency, profile, profile_together, speedup
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


def test_predictions_are_compared_with_those_of_the_first_model_on_all_batches():
    class Sign(nn.Module):
        """Class 2 for positive inputs, class 0 for the others."""

        def forward(self, x):
            return torch.stack([-x[:, 0], 0 * x[:, 0], x[:, 0]], 1)

    inputs = torch.tensor([[1.], [-1.], [2.], [3.], [-1.]])
    batches = [(inputs[:2], torch.tensor([2, 2])), (inputs[2:], torch.tensor([1, 2, 0]))]
    models = {'sign': Sign(), 'two': Constant(2), 'zero': Constant(0)}
    found = profile_together(models, (1,), iter(batches), (1,), budget_s=0)
    assert {name: each.changed_predictions for name, each in found.items()} == {'sign': 0, 'two': 2, 'zero': 3}
    assert {name: each.accuracy for name, each in found.items()} == {'sign': 3 / 5, 'two': 3 / 5, 'zero': 1 / 5}
    assert profile(Sign(), (1,), batch_sizes=(1,), budget_s=0).changed_predictions is None


def test_counts():
    model = nets.Pair()
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.bias.fill_(-0.0)
    found = profile(model, (3, 8, 8), batch_sizes=(2,), budget_s=0)
    assert found.num_params == nets.num_params(model) == 6 * 28 + 4 * 55
    assert found.num_nonzero_params == 4 * 55
    assert found.size_bytes == 4 * found.num_params
    assert found.num_flops == 2 * (6 * 27 * 64 + 4 * 54 * 36)  # of one image, whatever is timed


def test_latency_of_a_clock_we_control():
    """Each reading of the clock is one second later than the last, so that each run takes 1000 ms."""
    clock = itertools.count()
    found = compare_latency({'a': nn.Identity(), 'b': nn.Identity()}, (3,), batch_size=7, budget_s=10,
                            clock_s=lambda: next(clock))
    for latency in found.values():
        assert (latency.device, latency.backend, latency.batch_size) == ('cpu', 'eager', 7)
        assert (latency.p50_ms, latency.p95_ms, latency.num_runs) == (1000, 1000, 10)
        assert latency.num_threads == torch.get_num_threads() and latency.hardware
    assert found['a'].speedup_over == {} and found['b'].speedup_over == {'a': Speedup(1, 1, 1)}
    assert next(clock) == 2 * 2 * 10  # two readings a run, ten runs a model


def test_percentiles_and_a_least_number_of_runs():
    durations = iter(range(1, 12))
    readings = itertools.chain.from_iterable((0, next(durations)) for _ in range(11))
    found = compare_latency({'a': nn.Identity()}, (3,), budget_s=66, clock_s=lambda: next(readings))['a']
    assert (found.p50_ms, found.p95_ms, found.num_runs) == (6000, 10500, 11)
    clock = itertools.count(step=100)
    found = compare_latency({'a': nn.Identity()}, (3,), budget_s=0, clock_s=lambda: next(clock))['a']
    assert found.num_runs == profiler.MIN_RUNS


def test_speedup_is_the_median_of_the_rounds_with_its_confidence_interval():
    assert speedup([2, 4, 6, 8, 10], [1, 2, 2, 2, 2]) == Speedup(3, 2, 5)
    # Tables of the binomial distribution: of 16 numbers the 4th and the 13th, of 100 the 40th and the 61st.
    assert speedup(range(1, 17), [1] * 16) == Speedup(8.5, 4, 13)
    assert speedup(range(100, 0, -1), [1] * 100) == Speedup(50.5, 40, 61)


def test_a_slow_spell_of_the_machine_is_no_gain_and_hides_none():
    """Rounds that take ten times as long do so for both models."""
    spell = [1, 1, 10, 10, 10, 10, 1, 1, 1, 1]
    assert speedup([2 * s for s in spell], spell) == Speedup(2, 2, 2)
    noise = [1, 1.2, 0.9, 1.1, 0.8, 1, 1.3, 0.9, 1, 1.1]
    assert not speedup(noise, spell[:1] * 10).is_gain
    assert speedup([2 * n for n in noise], [1] * 10).is_gain


@pytest.mark.parametrize('low, high, is_gain, is_loss', [
    (1.0, 1.5, False, False), (1.01, 1.01, False, False), (1.02, 1.03, True, False),
    (0.9, 1.0, False, False), (0.99, 0.99, False, False), (0.9, 0.98, False, True)])
def test_gain_and_loss_are_shown_by_the_whole_interval(low, high, is_gain, is_loss):
    found = Speedup((low + high) / 2, low, high)
    assert (found.is_gain, found.is_loss) == (is_gain, is_loss)


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

    compare_latency({'a': named('a'), 'b': named('b')}, (3,), budget_s=0.5)
    assert order == [*'abbaabbaab']


def test_profile_measures_each_batch_size_and_survives_json():
    found = profile_together({'a': nets.LeNet(), 'b': nets.LeNet()}, (1, 6, 6), batch_sizes=(1, 4), budget_s=0)['b']
    assert [(latency.device, latency.batch_size) for latency in found.latencies] == [('cpu', 1), ('cpu', 4)]
    for latency in found.latencies:
        assert 0 < latency.p50_ms <= latency.p95_ms
        assert latency.num_runs == profiler.MIN_RUNS
    assert [(memory.device, memory.batch_size) for memory in found.peak_memory] == [('cpu', 1), ('cpu', 4)]
    assert found.latency('cpu', 4) is found.latencies[1]
    with pytest.raises(LookupError, match='no latency was measured on cuda at batch size 4 with eager'):
        found.latency('cuda', 4)
    assert Profile.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_each_back_end_is_measured_under_its_name():
    found = profile(nets.VGG(), (3, 8, 8), batch_sizes=(1, 2), budget_s=0, backends=('channels_last', 'eager'))
    assert [(latency.backend, latency.batch_size) for latency in found.latencies] == [
        ('channels_last', 1), ('eager', 1), ('channels_last', 2), ('eager', 2)]
    assert found.latency('cpu', 2, 'channels_last') is found.latencies[2]
    assert found.latency('cpu', 2) is found.latencies[3]


def test_models_and_random_generators_stay_as_they_are():
    model = nets.VGG().train()
    before, state = nets.state_of(model), torch.get_rng_state()
    profile(model, (3, 8, 8), [(nets.images(), torch.zeros(4, dtype=torch.long))], (2,), budget_s=0)
    assert model.training and nets.same_state(before, nets.state_of(model))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_is_measured_beside_the_cpu():
    batches = [(nets.images(), torch.zeros(4, dtype=torch.long))]
    found = profile(nets.VGG(), (3, 8, 8), batches, (1, 8), device='cuda', budget_s=0,
                    backends=('eager', 'onnxruntime'))
    assert [(latency.device, latency.batch_size, latency.backend) for latency in found.latencies] == [
        ('cpu', 1, 'eager'), ('cpu', 1, 'onnxruntime'), ('cpu', 8, 'eager'), ('cpu', 8, 'onnxruntime'),
        ('cuda', 1, 'eager'), ('cuda', 8, 'eager')]
    assert all(m.peak_bytes > found.size_bytes for m in found.peak_memory)
