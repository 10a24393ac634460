"""Replays: arrivals, the simulation against theory and by hand, the real thing, and the command."""

import csv
from dataclasses import dataclass
import json
import time

import numpy as np
import pytest

from dnnshifter_ext.install import install
from dnnshifter_ext.package import read
from dnnshifter_ext.runtime import Fixed, QPSTrend, SwitchDecision, replay, report
from dnnshifter_ext.runtime.replay import Costs, Limits, Questions, Run, Steps, Wave, poisson, simulate, summarise
from tests import helpers
from tests.dnnshifter_ext.runtime import portfolios, serving

ONE = [Costs('one', 10.0, 100, 0.9)]
THREE = [Costs('small', 10.0, 100, 0.8), Costs('middle', 20.0, 200, 0.85), Costs('large', 40.0, 400, 0.9)]
UNLIMITED = Limits(max_queries=10**9)


def simulated(variants, arrivals_s, policy=Fixed(), limits=UNLIMITED, duration_s=1.0, switch_ms=50.0):  # noqa: B008
    return simulate(variants, np.array(arrivals_s), duration_s, policy, limits, package_bytes=1000,
                    switch_ms=switch_ms)


@dataclass(frozen=True)
class At:
    """To this variant from a certain moment on; the other one is prefetched if there is one to be."""

    switch_s: float
    target: int
    prefetch: int | None = None

    def decide(self, history, now_s):
        return SwitchDecision(self.target if now_s >= self.switch_s - 1e-9 else history.active, 'by the clock',
                              self.prefetch)


# ---- arrivals

def test_arrivals_follow_the_rate_and_the_seed():
    steps = Steps((100.0, 400.0, 50.0))
    arrivals_s = poisson(steps, 30.0, seed=1)
    assert np.all(np.diff(arrivals_s) >= 0) and arrivals_s[0] >= 0 and arrivals_s[-1] < 30
    counts = np.histogram(arrivals_s, [0, 10, 20, 30])[0]
    expected = np.array([1000, 4000, 500])
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))
    np.testing.assert_array_equal(arrivals_s, poisson(steps, 30.0, seed=1))
    assert len(arrivals_s) != len(poisson(steps, 30.0, seed=2))
    gaps = np.diff(poisson(Steps((200.0,)), 30.0, seed=3))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.06)  # as those of an exponential distribution


def test_a_wave_has_its_mean_and_its_extremes():
    wave = Wave(100.0, 500.0, 10.0)
    np.testing.assert_allclose(wave(np.array([0, 2.5, 5, 10]), 99.0), [100, 300, 500, 100])
    assert len(poisson(wave, 20.0, seed=0)) == pytest.approx(6000, abs=4 * 6000**0.5)


# ---- the simulation

@pytest.mark.parametrize('load', [0.3, 0.8])
def test_waiting_is_as_in_the_queue_m_d_1(load):
    """Pollaczek-Khinchine: load x service / (2 (1 - load))."""
    arrivals_s = poisson(Steps((load / 0.010,)), 1000.0, seed=0)
    run = simulated(ONE, arrivals_s, duration_s=1000.0)
    assert run.latencies_ms.mean() - 10 == pytest.approx(load * 10 / (2 * (1 - load)), rel=0.06)


def test_two_threads_and_three_places_by_hand():
    run = simulated(ONE, [0, 0.001, 0.002, 0.003, 0.0105, 0.050], limits=Limits(max_queries=3, num_threads=2))
    np.testing.assert_allclose(run.latencies_ms, [10, 10, 18, np.inf, 10.5, 10])
    assert run.answered_by.tolist() == [0, 0, 0, -1, 0, 0]
    np.testing.assert_allclose(run.rightness, [0.9, 0.9, 0.9, 0, 0.9, 0.9])


def test_a_switch_by_hand():
    run = simulated(THREE, [0.0, 0.21, 0.245, 0.3], At(0.2, 0), duration_s=0.5)
    # Ready at 0.25: the third query has begun with the old variant and ends with it.
    assert run.answered_by.tolist() == [1, 1, 1, 0]
    np.testing.assert_allclose(run.latencies_ms, [20, 20, 20, 10])
    assert run.active.tolist() == [1, 1, 1, 0, 0] and run.num_switches == 1
    assert run.total_bytes.tolist() == [1200, 1200, 1300, 1100, 1100] and run.peak_bytes == 1300


def test_a_query_that_waits_is_answered_by_the_variant_that_is_active_when_it_begins():
    run = simulated(THREE, [0.0] * 15, At(0.2, 0), duration_s=0.5)
    # 13 begin until 0.25 at 20 ms each, the others after it at 10 ms.
    np.testing.assert_allclose(run.latencies_ms, [*np.arange(1, 14) * 20.0, 270, 280])


def test_what_is_prefetched_takes_over_at_once_unless_the_budget_forbids_it():
    arrivals_s = [0.205]
    assert simulated(THREE, arrivals_s, At(0.2, 0), duration_s=0.5).answered_by.tolist() == [1]
    ahead = simulated(THREE, arrivals_s, At(0.2, 0, prefetch=0), duration_s=0.5)
    assert ahead.answered_by.tolist() == [0] and ahead.total_bytes.tolist()[:2] == [1300, 1300]
    tight = simulated(THREE, [0.205, 0.3], At(0.2, 2, prefetch=2), Limits(inflated_bytes=599), duration_s=0.5)
    assert tight.answered_by.tolist() == [1, 1] and tight.peak_bytes == 1200


def test_the_real_policy_goes_to_smaller_variants_under_a_rising_load_and_back():
    arrivals_s = poisson(Steps((15.0, 30.0, 80.0, 30.0, 10.0)), 60.0, seed=0)
    limits = Limits(max_queries=64)
    runs = {'switcher': simulated(THREE, arrivals_s, QPSTrend(), limits, 60.0)} | {
        variant.name: simulated(THREE, arrivals_s, Fixed(variant.name), limits, 60.0) for variant in THREE}
    summaries = {label: summarise(label, run, 100.0, 60.0) for label, run in runs.items()}
    assert runs['switcher'].active[300] == 0 < runs['switcher'].active[-1]
    assert runs['switcher'].num_switches >= 2 and runs['large'].num_switches == 0
    assert summaries['large'].refused > 0.2 > summaries['switcher'].refused == summaries['small'].refused == 0
    assert summaries['switcher'].effective_accuracy > 1.1 * summaries['large'].effective_accuracy
    again = simulated(THREE, arrivals_s, QPSTrend(), limits, 60.0)
    np.testing.assert_array_equal(again.latencies_ms, runs['switcher'].latencies_ms)
    np.testing.assert_array_equal(again.active, runs['switcher'].active)


# ---- summaries

def test_summary_by_hand():
    run = Run(latencies_ms=np.array([5.0, 20.0, np.inf, 8.0]), answered_by=np.array([0, 1, -1, 0]),
              rightness=np.array([1.0, 1.0, 0.0, 0.5]), times_s=np.array([0.0, 0.1]), active=np.array([0, 1]),
              memory_bytes={'package': np.array([10, 10]), 'active': np.array([1, 3])}, peak_bytes=14, num_switches=3)
    summary = summarise('x', run, deadline_ms=10.0, duration_s=30.0)
    assert (summary.effective_accuracy, summary.on_time, summary.refused) == (1.5 / 4, 0.5, 0.25)
    assert (summary.p50_ms, summary.p99_ms) == (8.0, np.inf)
    assert (summary.switches_per_minute, summary.mean_memory_bytes, summary.peak_memory_bytes) == (6.0, 12.0, 14)
    assert 'refused' in report.text_table([summary])


# ---- for real

def test_latency_counts_from_the_scheduled_arrival(monkeypatch):
    """All arrive at once: the k-th waits for those before it."""
    monkeypatch.setattr(replay, 'Runtime', serving.Slow)
    questions = Questions(portfolios.images(4))
    run = replay.replay(read(serving.profiled_content()), np.full(10, 0.05), 0.2, Fixed('small'), Limits(8),
                        backend='numpy', questions=questions, accuracies=[0.8, 0.85, 0.9])
    answered = run.latencies_ms[:8]
    assert np.all(answered >= 50 * np.arange(1, 9) - 1) and np.all(np.isinf(run.latencies_ms[8:]))
    assert np.all(np.diff(answered) > 45)
    assert run.answered_by.tolist() == [0] * 8 + [-1] * 2
    np.testing.assert_allclose(run.rightness, [0.8] * 8 + [0] * 2)


def test_switching_for_real_with_labels_that_one_variant_gives():
    images = portfolios.images(32)
    package = read(serving.profiled_content())
    right = {name: outputs.argmax(1) for name, outputs in portfolios.expected(images).items()}
    arrivals_s = np.linspace(0, 0.55, 100, endpoint=False)
    run = replay.replay(package, arrivals_s, 0.6, SwitchOnce(), Limits(64), backend='numpy',
                        questions=Questions(images, right['large']), accuracies=[None] * 3)
    assert set(run.answered_by) == {1, 2} and run.num_switches == 1 and run.active[0] == 1 and run.active[-1] == 2
    agrees = {1: right['middle'] == right['large'], 2: np.ones(32, bool)}
    expected = [agrees[variant][query % 32] for query, variant in enumerate(run.answered_by)]
    np.testing.assert_array_equal(run.rightness, expected)
    assert 0 < run.rightness.mean() < 1
    assert run.peak_bytes >= run.total_bytes[0] - run.memory_bytes['scratch'][0]


@dataclass(frozen=True)
class SwitchOnce:
    """To the large variant once 30 queries have arrived."""

    def decide(self, history, now_s):
        return SwitchDecision(2 if history.num_queries.sum() >= 30 or history.active == 2 else history.active, '')


# ---- the command

@pytest.fixture
def package(tmp_path):
    install()
    path = tmp_path / 'p.dnns'
    path.write_bytes(serving.profiled_content())
    return path


def typed(package, *words):
    return helpers.run_main('replay', f'--portfolio={package}', '--backend=numpy', *words)


def test_the_command_simulates_and_writes_tables_and_the_figure(package, tmp_path):
    flags = ('--simulate', '--qps=100,600,100', '--seconds=10', '--deadline_ms=50')
    outcome = typed(package, *flags, f'--output={tmp_path / "a"}')
    assert (outcome.status, outcome.err) == (0, '')
    assert helpers.list_files(tmp_path / 'a') == {'replay.json', 'comparison.csv', 'timeline.csv', 'replay.png'}
    found = json.loads((tmp_path / 'a' / 'replay.json').read_text())
    assert [row['label'] for row in found['comparison']] == ['switcher', 'small', 'middle', 'large']
    assert found['settings']['rightness'] == 'the accuracy of the profiles'
    assert found['comparison'][3]['p999_ms'] is None and found['comparison'][3]['refused'] > 0.1
    rows = list(csv.DictReader((tmp_path / 'a' / 'timeline.csv').open()))
    assert len(rows) == 4 * 10 and {row['active'] for row in rows if row['run'] == 'large'} == {'large'}
    assert 'right in time %' in outcome.out and 'accuracy of the profiles' in outcome.out

    typed(package, *flags, '--seed=0', f'--output={tmp_path / "same"}')
    typed(package, *flags, '--seed=1', f'--output={tmp_path / "other"}')
    tables = [(tmp_path / folder / 'timeline.csv').read_text() for folder in ('a', 'same', 'other')]
    assert tables[0] == tables[1] != tables[2]


def test_the_command_replays_a_trace_in_real_time(package, tmp_path):
    trace = tmp_path / 'trace.csv'
    trace.write_text('arrival_s\n0.10\n0.05\n\n0.20,extra\n')
    labelled = tmp_path / 'labelled.npz'
    images = portfolios.images(3)
    np.savez(labelled, images=images, labels=portfolios.expected(images)['small'].argmax(1))
    begin_s = time.monotonic()
    outcome = typed(package, f'--trace={trace}', '--seconds=0.3', f'--labelled={labelled}', '--deadline_ms=5000',
                    f'--output={tmp_path / "out"}')
    assert outcome.status == 0, outcome.err
    assert time.monotonic() - begin_s > 4 * 0.2
    comparison = json.loads((tmp_path / 'out' / 'replay.json').read_text())['comparison']
    assert [row['num_queries'] for row in comparison] == [3] * 4
    assert comparison[1]['effective_accuracy'] == 1.0  # the small one, whose answers these are


def test_the_command_refuses_in_one_line_and_writes_nothing(package, tmp_path):
    unprofiled, bad_trace = tmp_path / 'unprofiled.dnns', tmp_path / 'bad.csv'
    unprofiled.write_bytes(portfolios.content())
    bad_trace.write_text('0.1\nsoon\n')
    output = tmp_path / 'out'
    for words, expected in (
            ((f'--portfolio={unprofiled}',), "'small' has no latency"), (('--portfolio=none',), 'no file none'),
            (('--qps=0',), '--qps'), (('--qps=wave:9:3:10',), 'wave'), (('--seconds=-1',), '--seconds'),
            ((f'--trace={bad_trace}',), "line 2 of"), ((f'--trace={bad_trace}', '--qps=3'), 'not both'),
            (('--switch_ms=5',), '--simulate'), (('--simulate', '--labelled=x'), 'not both'),
            (('--policy=fixed:huge',), 'small, middle, large'), (('--memory_budget_mb=0.01',), 'too few'),
            (('--simulate', '--qps=0.0001', '--seconds=1'), 'no query'), ((f'--output={package}',), 'is a file')):
        helpers.assert_one_line_error(typed(package, f'--output={output}', *words), expected)
        assert not output.exists()
