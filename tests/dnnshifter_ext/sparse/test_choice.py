import pytest
import torch
from torch import nn

import dnnshifter_ext
from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.graph import capture
from dnnshifter_ext.sparse import choice, library
from dnnshifter_ext.sparse.choice import with_execution
from dnnshifter_ext.sparse.hybrid import InBlocks
from dnnshifter_ext.sparse.layers import SparseLayer
from tests.dnnshifter_ext import nets
from tests.dnnshifter_ext.sparsity import Sparsity, make_sparse

pytestmark = pytest.mark.usefixtures('needs_compiler')
X = nets.images(num=40)
NOT_ALONE = 'what the model computes for an image depends on the others of its batch'


@pytest.fixture
def timed(monkeypatch):
    """Answers the measurements in turn with given times: (dense, sparse) of each layer, then of the whole models."""
    def prepare(*answers):
        queue = list(answers)

        def median_ms(runs):
            assert [run().shape[0] for run in runs], 'they can run'
            times_ms = queue.pop(0)
            assert len(times_ms) == len(runs)
            return list(times_ms)

        monkeypatch.setattr(choice, 'median_ms', median_ms)
        return queue
    return prepare


def chosen(execution):
    return [layer.execution for layer in execution.layers]


def sparse_layers(model):
    return [path.removeprefix('model.') for path, layer in model.named_modules() if isinstance(layer, SparseLayer)]


@pytest.fixture
def model():
    return capture(nets.sparsify(nets.Pair()))


def test_a_mixture_is_taken_where_it_is_fastest(timed, model):
    queue = timed((3.0, 1.0), (1.0, 2.0), (10.0, 12.0, 7.0))
    found, execution = with_execution(model, (X,), 'auto')
    assert not queue
    assert isinstance(found, InBlocks) and sparse_layers(found) == ['conv1']
    assert chosen(execution) == ['sparse', 'dense'] and execution.num_sparse == 1
    assert [(layer.dense_ms, layer.sparse_ms) for layer in execution.layers] == [(3.0, 1.0), (1.0, 2.0)]
    block = library.load().functions.lanes()
    assert (execution.batch_size, execution.block_size, execution.num_threads) == (40, block, torch.get_num_threads())
    assert (execution.dense_ms, execution.measured_ms) == (10.0, 7.0)
    assert execution.predicted_ms == pytest.approx(10 - 2 * 40 / block)
    assert execution.reason == ''


@pytest.mark.parametrize('whole_ms, taken', [
    ((10.0, 9.0, 12.0), 'sparse'), ((10.0, 12.0, 11.0), 'dense'), ((10.0, 10.0, 10.0), 'sparse'),
    ((10.0, 9.99, 9.99), 'sparse')])
def test_what_layers_promise_is_not_believed(timed, model, whole_ms, taken):
    timed((3.0, 1.0), (1.0, 2.0), whole_ms)
    found, execution = with_execution(model, (X,), 'auto')
    assert chosen(execution) == [taken, taken]
    assert execution.measured_ms == min(whole_ms) <= execution.dense_ms == 10
    assert (found is model) == (taken == 'dense')
    assert sparse_layers(found) == (['conv1', 'conv2'] if taken == 'sparse' else [])


def test_of_those_nearly_as_fast_the_smallest_is_taken_if_it_is_not_slower_than_dense(timed, model):
    for whole_ms, taken in (((10.0, 8.0, 7.7), 'sparse'), ((10.0, 8.0, 7.5), 'mixed'), ((10.0, 10.1, 9.9), 'mixed')):
        timed((3.0, 1.0), (1.0, 2.0), whole_ms)
        _, execution = with_execution(model, (X,), 'auto')
        assert chosen(execution) == (['sparse'] * 2 if taken == 'sparse' else ['sparse', 'dense'])
        assert execution.measured_ms == whole_ms[1 if taken == 'sparse' else 2]


@pytest.mark.parametrize('layers_ms', [[(1.0, 2.0), (1.0, 1.0)], [(2.0, 1.0), (3.0, 1.0)]])
def test_where_no_or_all_layers_are_faster_there_is_no_mixture(timed, model, layers_ms):
    queue = timed(*layers_ms, (10.0, 9.0))
    assert chosen(with_execution(model, (X,), 'auto')[1]) == ['sparse', 'sparse'] and not queue


def test_sparse_takes_all_and_measures_nothing(timed):
    timed()
    model = capture(nets.sparsify(nets.VGG()))
    found, execution = with_execution(model, (X,), 'sparse')
    assert set(chosen(execution)) == {'sparse'} and sparse_layers(found) == [layer.layer for layer in execution.layers]
    for layer in execution.layers:
        dense, sparse = model.get_submodule(layer.layer), found.model.get_submodule(layer.layer)
        assert layer.density == float((dense.weight != 0).double().mean()) == pytest.approx(sparse.filters().density)
        assert (layer.dense_bytes, layer.sparse_bytes) == (size_bytes(dense), size_bytes(sparse))
        assert layer.sparse_bytes == 6 * int((dense.weight != 0).sum()) + 8 * len(dense.weight) + 4
    assert execution.measured_ms is execution.dense_ms is execution.predicted_ms is None


def test_one_image_and_real_times(model):
    for num in (1, 3):
        found, execution = with_execution(model, (X[:num],), 'auto')
        assert execution.batch_size == execution.block_size == num
        assert 0 < execution.measured_ms <= execution.dense_ms
        assert len(sparse_layers(found)) == execution.num_sparse


def test_times_are_medians_of_warm_runs(monkeypatch):
    calls, now = [], [0.0]

    def run(name, times_s):
        def once():
            calls.append(name)
            now[0] += times_s.pop(0)
        return once

    monkeypatch.setattr(choice.time, 'perf_counter', lambda: now[0])
    slow_first = [9.0, 0.002, 0.5, 0.002, 0.002, 0.001, 0.5, 0.002]
    assert choice.median_ms([run('a', slow_first), run('b', [0.003] * 8)]) == pytest.approx([2.0, 3.0])
    assert calls == ['a', 'b'] * (choice.NUM_ROUNDS + 1)


@pytest.mark.parametrize('execution', ['sparse', 'auto'])
def test_no_compiler_is_dense_with_the_reason(monkeypatch, model, execution):
    monkeypatch.setattr(library, 'load', lambda: None)
    found, report = with_execution(model, (X,), execution)
    assert found is model and report.layers == () and report.num_sparse == 0
    assert report.reason == 'there is no C compiler for the sparse kernels'


class Net(nn.Module):
    def __init__(self, forward, num=1):
        super().__init__()
        self.conv, self.function = nn.Conv2d(3, 4, 3), forward

    def forward(self, x):
        return self.function(self.conv(x))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, y):
        return self.conv(x) + self.conv(y)


ONE_BATCH = 'sparse execution takes models of one batch of inputs and one of outputs'


@pytest.mark.parametrize('model, inputs, reason', [
    (Two(), (X, X), ONE_BATCH), (Net(lambda x: (x, x + 1)), (X,), ONE_BATCH),
    (Net(lambda x: {'y': x}), (X,), ONE_BATCH),
    (Net(lambda x: x.chunk(2, 1)), (X,), NOT_ALONE), (Net(lambda x: x - x.mean(0)), (X,), NOT_ALONE),
    (Net(lambda x: x.mean()), (X,), NOT_ALONE), (Net(lambda x: x.flip(0)), (X,), NOT_ALONE),
    (Net(lambda x: x.transpose(0, 1)), (X,), NOT_ALONE), (Net(lambda x: x.reshape(1, -1)), (X,), NOT_ALONE),
    (Net(lambda x: x.softmax(0)), (X,), NOT_ALONE),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), (X,), NOT_ALONE),
    (nn.Sequential(nn.ReLU(), nn.Flatten()), (X,), 'no layer has a sparse form'),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode='reflect'), (X,), 'no layer has a sparse form'),
    (nn.Conv2d(3, 4, 3).double(), (X.double(),),
     'sparse execution is for float32 on the CPU, not torch.float64 on cpu'),
], ids=str)
def test_models_that_stay_dense_say_why(model, inputs, reason):
    model = capture(nn.Sequential(model).eval() if len(inputs) == 1 else model.eval())
    for execution in ('sparse', 'auto'):
        found, report = with_execution(model, inputs, execution)
        assert found is model and report.reason == reason and report.layers == ()


def test_images_in_a_batch_are_told_apart_even_if_the_example_is_one():
    model = capture(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval())
    assert with_execution(model, (torch.zeros(1, 3, 8, 8),), 'sparse')[1].reason == NOT_ALONE


def test_convert():
    model = make_sparse(nets.VGG(), Sparsity(0.6, 0.1)).float()
    dense, sparse = (dnnshifter_ext.convert(model, X, execution=execution) for execution in ('dense', 'sparse'))
    assert dense.execution is None and dense.rounding is None and dense.model is dense.pruned
    assert isinstance(sparse.model, InBlocks) and sparse.execution.num_sparse == len(sparse.execution.layers) > 0
    assert not sparse_layers(sparse.pruned) and sparse.choosing_time_ms > 0
    assert sparse.rounding.max_abs_difference <= 1e-5 * sparse.rounding.output_range
    assert sparse.rounding.changed_predictions == 0
    assert torch.equal(sparse.model(X).argmax(1), model(X).argmax(1))


def test_an_unknown_execution_is_one_line():
    with pytest.raises(ValueError, match="^there is no execution 'fast'; there are dense, sparse, auto$"):
        dnnshifter_ext.convert(nets.VGG(), X, execution='fast')


def test_a_hybrid_that_computes_something_else_is_thrown_away(monkeypatch):
    """The proof runs the kernels."""
    layers = choice.to_hybrid

    def wrong(*args):
        hybrid = layers(*args)
        next(layer for layer in hybrid.modules() if isinstance(layer, SparseLayer)).bias += 0.1
        return hybrid

    monkeypatch.setattr(choice, 'to_hybrid', wrong)
    with pytest.raises(ValueError, match='VGG: on sparse kernels it differs by .*dense'):
        dnnshifter_ext.convert(make_sparse(nets.VGG(), Sparsity(0.6, 0.1)).float(), X, execution='sparse')
