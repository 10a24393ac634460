"""Switching: what is answered, what is freed, what is refused."""

import gc
import json
import threading
import time
import weakref

import numpy as np
import pytest
import torch

import dnnshifter_ext
from dnnshifter_ext.package import PackageError
from dnnshifter_ext.runtime import Fixed, LatencyTarget, QPSTrend, Runtime, SwitchDecision
from open_lth.foundations.errors import UserError
from tests.dnnshifter_ext.runtime import portfolios


@pytest.fixture
def open_runtime():
    opened = []

    def make(path=None, **options):
        options = {'backend': 'numpy', 'policy': Fixed(), 'decide_every_s': None, 'num_threads': 1} | options
        opened.append(Runtime(portfolios.package() if path is None else path, **options))
        return opened[-1]

    yield make
    for runtime in opened:
        runtime.close()


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize('backend', ['torch', 'numpy', 'onnxruntime'])
def test_each_variant_answers_when_it_is_its_turn(open_runtime, tmp_path, backend):
    path = tmp_path / 'portfolio.dnns'
    path.write_bytes(portfolios.content())
    runtime = open_runtime(path, backend=backend)
    batch = portfolios.images(5)
    wanted = portfolios.expected(batch)
    assert runtime.stats().active == 'middle'
    for target, name in (('larger', 'large'), ('small', 'small'), ('larger', 'middle'), ('smaller', 'small')):
        record = runtime.switch_to(target)
        assert (record.target, record.error, record.was_prefetched) == (name, '', False)
        assert record.inflate_ms > 0 and record.rebuild_ms > 0 and record.first_inference_ms > 0
        answer = runtime.answer(batch)
        assert answer.variant == name and answer.latency_ms > 0 and isinstance(answer.outputs, np.ndarray)
        assert portfolios.is_close(answer.outputs, wanted[name])
        outputs = runtime.infer(torch.from_numpy(batch))
        assert isinstance(outputs, torch.Tensor) and portfolios.is_close(outputs.numpy(), wanted[name])
    assert runtime.switch_to('small') is None
    stats = runtime.stats()
    assert (stats.num_switches, stats.num_queries) == (4, {'small': 4, 'middle': 2, 'large': 2})
    assert [record.source for record in stats.switches] == ['middle', 'large', 'small', 'middle']


class Restless(Runtime):
    """Whenever somebody looks for the active variant, it is another one."""

    ready = ()

    @property
    def _active(self):
        if not self.ready:
            return self._found
        self.ready.append(self.ready.pop(0))
        return self.ready[0]

    @_active.setter
    def _active(self, value):
        self._found = value


def test_one_variant_alone_gives_an_answer_and_its_name():
    batch = portfolios.images(2)
    wanted = portfolios.expected(batch)
    with Restless(portfolios.package(), backend='numpy', policy=Fixed(), decide_every_s=None) as runtime:
        ready = [runtime._active]
        for name in ('small', 'large'):
            runtime.switch_to(name)
            ready.append(runtime._active)
        runtime.ready = ready
        for _ in range(7):
            answer = runtime.answer(batch)
            assert portfolios.is_close(answer.outputs, wanted[answer.variant])
        runtime.ready = ()


def switch_under_load(runtime, num_queries, num_switches, num_threads=8):
    """Answers are checked one by one against the variant that claims to have given them."""
    batches = [portfolios.images(1 + index % 3, seed=index) for index in range(24)]
    wanted = [portfolios.expected(batch) for batch in batches]
    answers, errors = [[] for _ in range(num_threads)], []
    is_done = threading.Event()

    def ask(own):
        try:
            while len(own) < num_queries // num_threads or not is_done.is_set():
                own.append(runtime.answer(batches[len(own) % len(batches)]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(own,)) for own in answers]
    for thread in threads:
        thread.start()
    order = np.random.RandomState(0)
    done = 0
    while done < num_switches and not errors:
        name = portfolios.NAMES[order.randint(3)]
        if done % 3 == 1:
            runtime.prefetch(name)
        done += runtime.switch_to(name) is not None
    is_done.set()
    for thread in threads:
        thread.join()
    assert not errors
    for own in answers:
        for index, answer in enumerate(own):
            here = wanted[index % len(batches)]
            assert portfolios.is_close(answer.outputs, here[answer.variant]), (index, answer.variant)
    return sum(map(len, answers)), {answer.variant for own in answers for answer in own}


@pytest.mark.parametrize('backend', ['torch', 'numpy'])
def test_no_query_is_lost_doubled_or_mixed_while_it_switches(open_runtime, backend):
    runtime = open_runtime(backend=backend)
    num_answered, variants = switch_under_load(runtime, 1000, 50)
    stats = runtime.stats()
    assert num_answered >= 1000 and variants == set(portfolios.NAMES)
    assert (stats.num_switches, stats.num_failed_switches, stats.num_failed, stats.num_in_flight) == (50, 0, 0, 0)
    assert sum(stats.num_queries.values()) == sum(stats.latency_counts) == num_answered
    assert any(record.was_prefetched for record in stats.switches)


@pytest.mark.full
@pytest.mark.parametrize('backend', ['torch', 'numpy'])
def test_100_000_queries_and_1_000_switches(open_runtime, backend):
    runtime = open_runtime(backend=backend)
    num_answered, _ = switch_under_load(runtime, 100_000, 1000)
    stats = runtime.stats()
    assert num_answered >= 100_000 and sum(stats.num_queries.values()) == num_answered
    assert (stats.num_switches, stats.num_failed_switches, stats.num_failed, stats.num_in_flight) == (1000, 0, 0, 0)


def test_the_answers_of_the_variants_differ():
    """Or the tests above could not tell one from another."""
    batch = portfolios.images(2)
    small, middle, large = portfolios.expected(batch).values()
    assert not any(portfolios.is_close(a, b, 0.05) for a, b in ((small, middle), (middle, large), (small, large)))


class Gate:
    """Holds back the runs of a model until it is opened."""

    def __init__(self, model):
        self.entered, self.opened = threading.Event(), threading.Event()
        self._run = model.run
        object.__setattr__(model, 'run', self)

    def __call__(self, batch):
        self.entered.set()
        assert self.opened.wait(10)
        return self._run(batch)


@pytest.mark.parametrize('backend', ['torch', 'numpy'])
def test_a_query_keeps_its_variant_which_is_freed_when_the_last_reader_leaves(open_runtime, backend):
    runtime = open_runtime(backend=backend)
    old = weakref.ref(runtime._active)
    gate = Gate(old().model)
    answers = []
    batch = portfolios.images(2)
    thread = threading.Thread(target=lambda: answers.append(runtime.answer(batch)))
    gc.disable()  # freed by the last reference, not when the collector happens to come by
    try:
        thread.start()
        assert gate.entered.wait(10)
        middle_bytes = runtime.stats().memory.active_bytes
        runtime.switch_to('small')
        assert runtime.stats().memory.old_bytes == middle_bytes and old() is not None
        assert runtime.stats().num_in_flight == 1
        gate.opened.set()
        thread.join()
        assert old() is None and runtime.stats().memory.old_bytes == 0
    finally:
        gc.enable()
    assert answers[0].variant == 'middle'
    assert portfolios.is_close(answers[0].outputs, portfolios.expected(batch)['middle'])


@pytest.mark.parametrize('backend', ['torch', 'numpy', 'onnxruntime'])
def test_tensors_are_freed_after_a_switch(open_runtime, backend):
    runtime = open_runtime(backend=backend)
    plans = runtime._store._plans
    inflated = []
    for plan in plans:
        inflate = plan.inflate

        def remember(inflate=inflate):
            weights = inflate()
            inflated.extend(weakref.ref(value) for value in weights.values())
            return weights

        object.__setattr__(plan, 'inflate', remember)
    gc.disable()
    try:
        runtime.switch_to('large')
        of_large = list(inflated)
        assert backend == 'onnxruntime' or all(value() is not None for value in of_large)
        runtime.infer(portfolios.images(20))
        runtime.switch_to('small')
        assert len(of_large) > 5 and all(value() is None for value in of_large)
    finally:
        gc.enable()


@pytest.mark.parametrize('error', [PackageError('a block is damaged'), MemoryError('no memory\nat all')])
def test_a_failing_inflate_leaves_the_old_variant_serving_and_is_reported(open_runtime, error):
    runtime = open_runtime(portfolios.broken('large', error))
    batch = portfolios.images(3)
    with pytest.raises(type(error)):
        runtime.switch_to('large')
    stats = runtime.stats()
    assert (stats.active, stats.num_switches, stats.num_failed_switches) == ('middle', 0, 1)
    assert stats.switches[-1].error == str(error).splitlines()[0] and stats.switches[-1].target == 'large'
    assert stats.memory.old_bytes == stats.memory.prefetched_bytes == 0
    assert portfolios.is_close(runtime.infer(batch), portfolios.expected(batch)['middle'])
    runtime.switch_to('large', wait=False)
    runtime.switch_to('small', wait=False)
    wait_for(lambda: runtime.stats().active == 'small')
    assert runtime.stats().num_failed_switches == 2


def wait_for(condition, seconds=10):
    end_s = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_a_real_damaged_block_is_refused_when_its_turn_comes(open_runtime, tmp_path):
    """As if memory had failed after the package was read: then its checksum was right."""
    package = portfolios.package()
    content = bytearray(package.content)
    damaged = type(package)(memoryview(content), tuple(
        type(variant)(variant.name, variant.profile, variant.tensors, memoryview(content), variant._structure,
                      variant._blocks) for variant in package.variants))
    runtime = open_runtime(damaged)
    block = damaged['large']._blocks['layers.0.conv.weight']
    content[block.start] ^= 1
    with pytest.raises(PackageError, match='is damaged'):
        runtime.switch_to('large')
    assert runtime.infer(portfolios.images(1)).shape == (1, 10)


def test_a_first_variant_that_cannot_answer_is_refused_in_one_line(open_runtime):
    with pytest.raises(UserError, match="^variant 'middle' cannot answer: no memory$"):
        open_runtime(portfolios.broken('middle', MemoryError('no memory\nat all')))


def test_a_prefetched_variant_takes_over_by_one_assignment(open_runtime):
    runtime = open_runtime()
    assert runtime.prefetch('larger') and runtime.prefetch('large')
    stats = runtime.stats()
    assert stats.prefetched == 'large' and stats.active == 'middle' and stats.memory.prefetched_bytes > 0
    record = runtime.switch_to('large')
    assert record.was_prefetched and record.inflate_ms == record.rebuild_ms == record.first_inference_ms == 0
    assert runtime.stats().prefetched is None
    runtime.prefetch('middle')
    assert not runtime.switch_to('small').was_prefetched
    assert runtime.stats().memory.prefetched_bytes == 0  # the wrong guess is gone


@pytest.mark.parametrize('is_rising', [True, False])
def test_the_load_decides_with_a_clock_of_its_own(open_runtime, is_rising):
    clock = Clock()
    runtime = open_runtime(policy=QPSTrend(window_s=2, cool_down_s=1), clock=clock)
    batch = portfolios.images(1)

    def load(num_per_interval, num_intervals):
        decisions = []
        for _ in range(num_intervals):
            for _ in range(num_per_interval):
                runtime.infer(batch)
            clock.now_s += 0.1
            decisions.append(runtime.decide())
        return decisions

    before, after = (2, 12) if is_rising else (12, 2)
    load(before, 21)
    assert runtime.stats().num_switches == 0
    decisions = load(after, 15)
    stats = runtime.stats()
    assert stats.active == ('small' if is_rising else 'large') and stats.num_switches == 1
    assert 'queries/s' in stats.switches[0].reason and stats.qps == pytest.approx(after * 10)
    # The neighbour was inflated ahead while the trend was not sure yet.
    assert any(decision.target == 1 and decision.prefetch == (0 if is_rising else 2) for decision in decisions)
    assert stats.switches[0].was_prefetched


def test_a_latency_target_moves_it_too(open_runtime):
    clock = Clock()
    runtime = open_runtime(policy=LatencyTarget(100, min_answers=5, cool_down_s=0), clock=clock)
    run = runtime._active.model.run

    def slow(batch):
        clock.now_s += 0.2
        return run(batch)

    object.__setattr__(runtime._active.model, 'run', slow)
    for _ in range(5):
        assert runtime.answer(portfolios.images(1)).latency_ms == pytest.approx(200)
    assert runtime.decide().target == 0 and runtime.stats().active == 'small'
    assert runtime.decide().reason == 'too few answers to judge by'  # those of the other variant do not count
    for _ in range(5):
        runtime.infer(portfolios.images(1))
    runtime.decide()
    assert runtime.stats().active == 'middle'


def test_the_thread_of_the_runtime_decides_by_itself(open_runtime):
    class Largest:
        def decide(self, history, now_s):
            return SwitchDecision(len(history.names) - 1 if len(history.latencies_ms) else history.active, 'grow')

    runtime = open_runtime(policy=Largest(), decide_every_s=0.005)
    runtime.infer(portfolios.images(1))
    wait_for(lambda: runtime.stats().active == 'large')


def test_a_policy_that_fails_does_not_end_the_service(open_runtime):
    class Failing:
        def decide(self, history, now_s):
            if len(history.latencies_ms):
                raise ZeroDivisionError('oh')
            return SwitchDecision(history.active, '')

    runtime = open_runtime(policy=Failing(), decide_every_s=0.005)
    runtime.infer(portfolios.images(1))
    wait_for(lambda: runtime.stats().last_decision == 'failed: oh')
    runtime.switch_to('large', wait=False)
    wait_for(lambda: runtime.stats().active == 'large')


def test_a_variant_that_cannot_be_inflated_ahead_is_not_tried_again_and_again(open_runtime):
    class Prefetching:
        def decide(self, history, now_s):
            return SwitchDecision(history.active, '', prefetch=2)

    runtime = open_runtime(portfolios.broken('large', PackageError('broken')), policy=Prefetching())
    runtime.decide()
    runtime.decide()
    stats = runtime.stats()
    assert stats.num_failed_switches == 1 and stats.switches[-1].error == 'broken' and stats.prefetched is None


def test_the_memory_budget_is_kept(open_runtime):
    needed = open_runtime()._store.bytes_needed
    deflated = len(portfolios.content())

    def budget(*sizes):
        return (deflated + sum(sizes) + 1) / 2**20

    small, middle, large = needed
    runtime = open_runtime(memory_budget_mb=budget(small, middle))
    assert runtime.stats().active == 'middle'
    with pytest.raises(UserError, match=r"'large' does not fit the memory budget: 0\.\d+ MiB would be needed"):
        runtime.switch_to('large')
    assert runtime.prefetch('large') is False and runtime.prefetch('small') is True
    runtime.switch_to('small')
    stats = runtime.stats()
    assert stats.memory.peak_bytes <= budget(small, middle) * 2**20
    assert open_runtime(memory_budget_mb=budget(small)).stats().active == 'small'
    with pytest.raises(UserError, match=r'memory_budget_mb: .* too few, the package and its smallest variant take'):
        open_runtime(memory_budget_mb=budget(small) / 2)
    with pytest.raises(UserError, match='does not fit'):
        open_runtime(memory_budget_mb=budget(middle), policy=Fixed('large'))


def test_a_fixed_variant_is_the_first_one(open_runtime):
    runtime = open_runtime(policy=Fixed('large'))
    assert runtime.stats().active == 'large' and runtime.stats().num_switches == 0
    with pytest.raises(UserError, match="no variant 'huge', only small, middle, large"):
        open_runtime(policy=Fixed('huge'))


@pytest.mark.parametrize(('batch', 'words'), [
    (np.zeros((1, 3, 8, 9), np.float32), r'float32 \(N, 3, 8, 8\) with N at least 1, not float32 \(1, 3, 8, 9\)'),
    (np.zeros((3, 8, 8), np.float32), r'not float32 \(3, 8, 8\)'),
    (np.zeros((0, 3, 8, 8), np.float32), 'N at least 1'),
    (np.zeros((1, 3, 8, 8)), 'not float64'),
    (torch.zeros(1, 3, 8, 8, dtype=torch.int64), 'not int64'),
    ([[1.0]], 'an array or a tensor, not list'),
    (np.full((1, 3, 8, 8), np.nan, np.float32), 'NaN or infinite'),
])
def test_a_batch_that_does_not_fit_is_refused_in_one_line(open_runtime, batch, words):
    runtime = open_runtime()
    with pytest.raises(ValueError, match=words) as caught:
        runtime.infer(batch)
    assert '\n' not in str(caught.value)
    stats = runtime.stats()
    assert stats.num_in_flight == 0 and sum(stats.num_queries.values()) == 0


def test_what_is_asked_for_and_not_there_is_refused(open_runtime, tmp_path):
    runtime = open_runtime()
    for target, words in (('huge', "no variant 'huge', only small, middle, large"),):
        with pytest.raises(UserError, match=words):
            runtime.switch_to(target)
    runtime.switch_to('larger')
    with pytest.raises(UserError, match="no larger variant than 'large'"):
        runtime.switch_to('larger')
    with pytest.raises(UserError, match='there is no package .*nowhere'):
        open_runtime(tmp_path / 'nowhere')
    damaged = tmp_path / 'damaged.dnns'
    damaged.write_bytes(portfolios.content()[:-9])
    with pytest.raises(UserError, match=f'{damaged}: .* cut short'):
        open_runtime(damaged)
    with pytest.raises(UserError, match="no back end 'tpu'"):
        open_runtime(backend='tpu')


def test_statistics_are_plain_data_and_prometheus_can_read_them(open_runtime):
    runtime = open_runtime()
    for _ in range(3):
        runtime.infer(portfolios.images(2))
    runtime.switch_to('small')
    data = json.loads(json.dumps(runtime.stats().to_dict()))
    assert data['active'] == 'small' and data['num_queries']['middle'] == 3 and data['p99_ms'] >= data['p50_ms'] > 0
    assert data['memory']['active_bytes'] > 0 and data['memory']['deflated_bytes'] == len(portfolios.content())
    assert sum(data['latency_counts']) == 3 and len(data['latency_counts']) == len(data['latency_bounds_ms']) + 1
    text = runtime.prometheus()
    samples = dict(line.rsplit(' ', 1) for line in text.splitlines() if not line.startswith('#'))
    assert samples['dnnshifter_active_variant{variant="small"}'] == '1'
    assert samples['dnnshifter_queries_total{variant="middle"}'] == '3'
    assert samples['dnnshifter_latency_seconds_count'] == samples['dnnshifter_latency_seconds_bucket{le="+Inf"}'] == '3'
    assert float(samples['dnnshifter_latency_seconds_sum']) == pytest.approx(data['latency_sum_ms'] / 1e3, rel=1e-6)
    assert samples['dnnshifter_switches_total'] == '1' and text.endswith('\n')
    kinds = {line.split()[2] for line in text.splitlines() if line.startswith('# TYPE')}
    assert all(any(name.startswith(kind) for kind in kinds) for name in samples)


def test_what_is_being_made_is_counted(open_runtime):
    runtime = open_runtime()
    before = runtime.stats().memory
    plan = runtime._store._plans[2]
    inflate, seen = plan.inflate, []

    def look(self=plan):
        seen.append(runtime.stats().memory)
        return inflate()

    object.__setattr__(plan, 'inflate', look)
    runtime.switch_to('large')
    [during] = seen
    assert during.prefetched_bytes == plan.num_bytes and during.old_bytes == 0
    assert during.total_bytes == before.total_bytes + plan.num_bytes
    after = runtime.stats().memory
    assert after.prefetched_bytes == after.old_bytes == 0 and after.active_bytes > before.active_bytes
    assert after.peak_bytes >= during.total_bytes - during.scratch_bytes


def test_it_is_closed_once_and_for_all(open_runtime):
    runtime = open_runtime()
    active = weakref.ref(runtime._active)
    runtime.close()
    runtime.close()
    assert active() is None
    for use in (lambda: runtime.infer(portfolios.images(1)), lambda: runtime.switch_to('small', wait=False),
                runtime.stats):
        with pytest.raises(RuntimeError, match='closed'):
            use()


def test_it_is_where_users_look_for_it():
    assert dnnshifter_ext.Runtime is Runtime
