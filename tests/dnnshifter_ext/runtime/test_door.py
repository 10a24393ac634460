"""The door: who is let in, and what a policy is told about those outside."""

from dataclasses import replace

import numpy as np
import pytest

from dnnshifter_ext.runtime import SwitchDecision
from dnnshifter_ext.runtime.door import AtTheDoor, ClosedError, Door, FullError
from dnnshifter_ext.runtime.monitor import Monitor

NAMES = ('small', 'middle', 'large')


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


class Recorder:
    def decide(self, history, now_s):
        self.history, self.now_s = history, now_s
        return SwitchDecision(0, 'recorded')


def test_there_is_room_for_so_many_and_again_for_one_when_one_has_left(clock):
    door = Door(NAMES, 2, clock)
    first, second = door.enter(), door.enter()
    with pytest.raises(FullError):
        door.enter()
    clock.now_s += 0.5
    first.answered_by = 'large'
    first.leave()
    with door.enter() as third:
        third.answered_by = 'small'
    with pytest.raises(ZeroDivisionError), second:
        _ = 1 / 0
    stats = door.stats()
    assert (stats.num_inside, stats.num_answered, stats.num_refused, stats.num_failed) == (0, 2, 1, 1)
    assert stats.p99_ms == pytest.approx(495) and stats.p50_ms == pytest.approx(250)


def test_a_closed_door_keeps_those_inside(clock):
    door = Door(NAMES, 2, clock)
    visit = door.enter()
    door.close()
    with pytest.raises(ClosedError):
        door.enter()
    assert (door.is_closed, door.num_inside) == (True, 1)
    visit.leave()
    assert door.num_inside == 0


def test_the_policy_is_told_of_all_arrivals_and_of_the_wait_but_switches_are_those_of_the_runtime(clock):
    door, recorder = Door(NAMES, 1, clock), Recorder()
    inside = Monitor(NAMES, 1, clock)  # the runtime's own, which sees what was let in when its turn has come
    policy = AtTheDoor(recorder, door)
    policy.decide(*inside.history())

    visit = door.enter()
    for _ in range(3):
        with pytest.raises(FullError):
            door.enter()
    clock.now_s += 0.3
    begun_s = inside.arrived()
    clock.now_s += 0.1
    inside.answered(begun_s, 1)
    visit.answered_by = 'middle'
    visit.leave()
    clock.now_s += 0.1
    assert policy.decide(*inside.history()).target == 0
    assert recorder.history.num_queries.sum() == 4 and recorder.now_s == clock.now_s
    np.testing.assert_allclose(recorder.history.latencies_ms, [400])
    assert (recorder.history.active, recorder.history.last_switch_s) == (1, None)

    inside.switched(0)
    clock.now_s += 0.1
    policy.decide(*inside.history())
    assert len(recorder.history.latencies_ms) == 0  # those were of the old variant
    assert (recorder.history.active, recorder.history.last_switch_s) == (0, pytest.approx(clock.now_s - 0.1))
    assert recorder.history.qps_at_switch == pytest.approx(4 / 0.5)  # in the five intervals that were over
    failed = replace(inside.history()[0], last_switch_s=clock.now_s)
    policy.decide(failed, clock.now_s)
    assert recorder.history.last_switch_s == clock.now_s
