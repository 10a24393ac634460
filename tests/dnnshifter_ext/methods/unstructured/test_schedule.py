"""How many weights are left after each round."""

from hypothesis import given, strategies
import pytest

from dnnshifter_ext.methods.unstructured.schedule import SCHEDULES, num_kept, remaining


@pytest.mark.parametrize('schedule, counts', [
    ('one_shot', [64]), ('linear', [784, 544, 304, 64]), ('exponential', [512, 256, 128, 64])])
def test_known_schedules(schedule, counts):
    assert remaining(schedule, 1024, 64, 4) == counts


@given(strategies.sampled_from(SCHEDULES), strategies.integers(0, 10**7), strategies.floats(0, 1),
       strategies.integers(1, 200))
def test_every_schedule_falls_to_exactly_what_is_asked(schedule, num_alive, share, num_rounds):
    target = int(num_alive * share)
    counts = remaining(schedule, num_alive, target, num_rounds)
    assert len(counts) == (1 if schedule == 'one_shot' else num_rounds) and counts[-1] == target
    assert all(before >= after for before, after in zip([num_alive, *counts], counts))


@pytest.mark.parametrize('num_weights, fraction, kept', [
    (1000, 0.9, 100), (1000, 0.99, 10), (100, 0.93, 7), (14_715_584, 0.5, 7_357_792), (10, 0.35, 6), (3, 0.0, 3),
    (14_715_584, 1 - 1 / 256, 57_482)])
def test_fractions_are_counted_exactly(num_weights, fraction, kept):
    """In floating point 1000 * (1 - 0.9) is below 100."""
    assert num_kept(num_weights, fraction) == kept


@pytest.mark.parametrize('arguments', [('cubic', 9, 3, 1), ('linear', 9, 3, 0), ('linear', 9, 10, 1)])
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError):
        remaining(*arguments)
