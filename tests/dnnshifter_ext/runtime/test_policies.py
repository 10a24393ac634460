"""Decisions from histories that are written down: no threads, no waiting."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dnnshifter_ext.runtime.policies import Fixed, History, LatencyTarget, QPSTrend, SwitchDecision, within_budget

NAMES = ('a', 'b', 'c', 'd')
TREND = QPSTrend(window_s=4, change=0.2, hysteresis=0.2, cool_down_s=2, num_sigmas=0)


def history(counts=(), active=1, latencies_ms=(), last_switch_s=None, qps_at_switch=None):
    """Intervals of 0.1 s that ended at 100 s."""
    return History(NAMES, active, 0.1, np.array(counts, np.int64), 100.0, np.array(latencies_ms, float),
                   last_switch_s, qps_at_switch)


def halves(before, after):
    """Counts per interval in the two halves of the window of 4 s."""
    return [before] * 20 + [after] * 20


@pytest.mark.parametrize(('before', 'after', 'target', 'prefetch'), [
    (10, 13, 0, None), (10, 7, 2, None), (10, 11, 1, 0), (10, 9, 1, 2), (10, 10, 1, None), (0, 0, 1, None),
    (0, 5, 0, None), (5, 0, 2, None)])
def test_a_rising_load_gets_a_smaller_variant_and_a_falling_one_a_larger(before, after, target, prefetch):
    decision = TREND.decide(history(halves(before, after)), 100.0)
    assert (decision.target, decision.prefetch) == (target, prefetch)


def test_nothing_is_decided_before_the_window_is_full():
    assert TREND.decide(history(halves(10, 30)[1:]), 100.0).target == 1


@pytest.mark.parametrize(('active', 'counts'), [(0, halves(10, 30)), (3, halves(30, 10))])
def test_at_the_ends_it_stays(active, counts):
    decision = TREND.decide(history(counts, active), 100.0)
    assert (decision.target, decision.prefetch) == (active, None) and 'further on' in decision.reason


@pytest.mark.parametrize(('last_switch_s', 'target'), [(98.1, 1), (98.0, 0)])
def test_it_cools_down(last_switch_s, target):
    assert TREND.decide(history(halves(10, 30), last_switch_s=last_switch_s), 100.0).target == target


@pytest.mark.parametrize(('qps_at_switch', 'target'), [(260, 1), (240, 0), (0, 0)])
def test_hysteresis_asks_for_a_change_since_the_last_switch(qps_at_switch, target):
    """300 queries per second now; a fifth more than 260 would be 312."""
    found = TREND.decide(history(halves(10, 30), last_switch_s=0, qps_at_switch=qps_at_switch), 100.0)
    assert found.target == target


def test_silence_is_a_falling_load():
    """The history ends at 100 s; two seconds later nothing has arrived."""
    assert TREND.decide(history(halves(10, 10)), 102.05).target == 2
    assert TREND.decide(history(halves(10, 10)), 1000.0) == SwitchDecision(1, '0.0 -> 0.0 queries/s')


def test_a_few_queries_more_are_no_trend_when_there_are_few():
    assert TREND.decide(history([0] * 20 + [0] * 18 + [1, 2]), 100.0).target == 0
    assert QPSTrend(num_sigmas=2).decide(history([0] * 20 + [0] * 18 + [1, 2]), 100.0).target == 1


@given(st.lists(st.integers(0, 1000), max_size=60), st.integers(0, 3), st.none() | st.floats(0, 100),
       st.none() | st.floats(0, 1e4), st.floats(100, 110), st.integers(0, 2))
def test_any_history_leads_one_step_at_most_and_never_out(counts, active, last_switch_s, qps, now_s, kind):
    policy = (TREND, LatencyTarget(10, min_answers=1), Fixed())[kind]
    latencies_ms = counts if kind == 1 else ()
    decision = policy.decide(history(counts, active, latencies_ms, last_switch_s, qps), now_s)
    assert 0 <= decision.target < 4 and abs(decision.target - active) <= 1
    assert decision.prefetch is None or (0 <= decision.prefetch < 4 and abs(decision.prefetch - active) == 1)


@given(st.integers(0, 10000), st.integers(0, 3))
def test_a_steady_load_never_switches(count, active):
    assert TREND.decide(history(halves(count, count), active), 100.0).target == active


def simulate(policy, rates, seed=0, start=2):
    """Active variant after each tenth of a second of a Poisson load; `rates` in queries per interval."""
    counts, active, last_switch_s, qps = [], start, None, None
    random, trace = np.random.RandomState(seed), []
    for index, rate in enumerate(rates, 1):
        counts.append(random.poisson(rate))
        now_s = index * 0.1
        decision = policy.decide(History(NAMES, active, 0.1, np.array(counts[-100:]), now_s, np.zeros(0),
                                         last_switch_s, qps), now_s)
        if decision.target != active:
            active, last_switch_s, qps = decision.target, now_s, sum(counts[-10:])
        trace.append(active)
    return np.array(trace)


@pytest.mark.parametrize('rate', [0.3, 3, 30, 300])
def test_a_steady_poisson_load_does_not_make_it_flap(rate):
    assert set(simulate(QPSTrend(), [rate] * 3000)) == {2}


def test_a_wave_is_followed_up_and_down():
    """One step of the load, up and later down: to a smaller variant, and back; with a switch or two each way."""
    trace = simulate(QPSTrend(), [10] * 200 + [40] * 200 + [10] * 200)
    assert trace[199] == 2 and trace[399] < 2 and trace[-1] > trace[399]
    assert np.count_nonzero(np.diff(trace)) <= 5
    # After what the window sees of a step, all is quiet.
    assert len(set(trace[270:400])) == 1 and len(set(trace[470:])) == 1


@pytest.mark.parametrize(('latency_ms', 'target', 'prefetch'), [(12, 0, None), (9, 1, 0), (6, 1, 2), (4, 2, None)])
def test_a_latency_target_is_kept(latency_ms, target, prefetch):
    policy = LatencyTarget(10, quantile=0.5, min_answers=3)
    decision = policy.decide(history(latencies_ms=[latency_ms] * 3), 100.0)
    assert (decision.target, decision.prefetch) == (target, prefetch)
    assert policy.decide(history(latencies_ms=[latency_ms] * 2), 100.0).target == 1
    assert policy.decide(history(latencies_ms=[latency_ms] * 3, last_switch_s=99), 100.0).target == 1


def test_the_quantile_counts_not_the_mean():
    latencies_ms = [1] * 90 + [100] * 10
    assert LatencyTarget(10, quantile=0.95).decide(history(latencies_ms=latencies_ms), 100.0).target == 0
    assert LatencyTarget(10, quantile=0.5).decide(history(latencies_ms=latencies_ms), 100.0).target == 2


def test_fixed_stays_or_goes_to_its_variant():
    assert Fixed().decide(history(active=3), 0.0).target == 3
    assert Fixed('a').decide(history(active=3), 0.0).target == 0
    with pytest.raises(ValueError, match="no variant 'e', only a, b, c, d"):
        Fixed('e').decide(history(), 0.0)


@pytest.mark.parametrize('make', [
    lambda: QPSTrend(window_s=0), lambda: QPSTrend(change=0), lambda: QPSTrend(cool_down_s=-1),
    lambda: LatencyTarget(0), lambda: LatencyTarget(1, quantile=0), lambda: LatencyTarget(1, spare=1),
    lambda: LatencyTarget(1, min_answers=0)])
def test_settings_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError):
        make()


@given(st.lists(st.integers(1, 100), min_size=4, max_size=4).map(sorted), st.integers(0, 3), st.integers(0, 3),
       st.none() | st.integers(0, 3), st.none() | st.integers(0, 250))
def test_a_budget_is_never_exceeded_and_the_nearest_that_fits_is_taken(sizes, active, target, prefetch, budget):
    found = within_budget(SwitchDecision(target, 'because', prefetch), history(active=active), tuple(sizes), budget)
    fits = [budget is None or index == active or sizes[active] + sizes[index] <= budget for index in range(4)]
    between = range(min(active, target), max(active, target) + 1)
    assert fits[found.target] and found.target in between
    assert abs(target - found.target) == min(abs(target - index) for index in between if fits[index])
    assert found.prefetch == (prefetch if prefetch is not None and fits[prefetch] else None)
