"""A run killed at any moment and started again ends with the same bits as one that was never killed."""

import random
import signal
import time

import pytest

from tests.helpers import TINY_FLAGS, TINY_LOTTERY, content_digests, level
from tests.zygote import Zygote

COMMAND = (*TINY_LOTTERY, '--rewinding_steps=3it', '--levels=1')
# What the extension measures: times, never the same twice.
MEASURED = ('profile.json', 'portfolio.csv', 'portfolio.png')
KILLED = -signal.SIGKILL


@pytest.fixture(scope='module')
def zygote():
    zygote = Zygote()
    yield zygote
    zygote.close()


def run(zygote, root, command=COMMAND, **job):
    return zygote.run(*command, f'--root={root}', extension=True, **job)


def bits(root):
    """Name -> digest of every file of a run; of what is measured, only that it is there."""

    digests = {name: 'measured' if name.endswith(MEASURED) else digest
               for name, digest in content_digests(root).items() if not name.endswith('.tmp')}
    assert {name.rpartition('/')[2] for name in digests} >= {
        'checkpoint.pth',
        'rng_train.pth',
        'plan.json',
        *MEASURED,
    }
    return digests


@pytest.fixture(scope='module')
def whole(zygote, tmp_path_factory):
    """(the bits of an uninterrupted run, how long it took)"""

    root = tmp_path_factory.mktemp('whole')
    start = time.monotonic()
    assert run(zygote, root) == 0
    return bits(root), time.monotonic() - start


def test_20_kills_at_random_moments(zygote, whole, tmp_path):
    """Each within the first part of what is left to do; a run is started again until it is through."""

    expected, duration_s = whole
    moments, kills = random.Random(0), []
    for number in range(100):
        root = tmp_path / str(number)
        status, delays = KILLED, []
        while status == KILLED:
            delays.append(moments.uniform(0, 0.7 * duration_s))
            status = run(zygote, root, kill_after_s=delays[-1] if len(kills) + len(delays) <= 20 else None)
        assert status == 0
        assert bits(root) == expected, f'killed after {delays[:-1]} seconds'
        kills += delays[:-1]
        if len(kills) == 20:
            return
    raise AssertionError('this machine is too slow or too fast: the runs are never killed')


@pytest.mark.parametrize('when', ['before', 'after'])
def test_kills_around_writes(zygote, whole, tmp_path, when):
    """At every fourth write: between a temporary file and its name, and right after a file has appeared."""

    expected, _ = whole
    command = (*COMMAND, '--no_dnnshifter')
    number = 1
    while run(zygote, tmp_path / str(number), command, die=['replace', number, when]) == KILLED:
        assert run(zygote, tmp_path / str(number), command) == 0
        finished = content_digests(tmp_path / str(number))
        files = {name: digest for name, digest in finished.items() if not name.endswith('.tmp')}
        assert files == {name: expected[name] for name in files}, f'killed {when} write {number}'
        assert len(files) == len([name for name in expected if '/main/' in name])
        number += 4
    assert number > 25


@pytest.mark.parametrize('number', [1, 2])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_kills_inside_the_extension(zygote, whole, tmp_path, number, when):
    expected, _ = whole
    assert run(zygote, tmp_path, die=['convert', number, when]) == KILLED
    assert not (level(tmp_path, number - 1, 'dnnshifter') / 'profile.json').exists()
    assert (level(tmp_path, number - 1) / 'model_ep2_it0.pth').exists(), 'the level itself is trained'
    assert run(zygote, tmp_path) == 0
    assert bits(tmp_path) == expected


def test_the_extension_leaves_no_trace_in_the_levels(zygote, whole, tmp_path):
    """Its draws, if it takes any, are given back: the levels are those of a run without it."""

    assert run(zygote, tmp_path, (*COMMAND, '--no_dnnshifter')) == 0
    plain, (expected, _) = content_digests(tmp_path), whole
    assert plain == {name: expected[name] for name in expected if '/main/' in name}


def test_an_experiment_extended_later_equals_one_run_in_one_go(zygote, whole, tmp_path):
    expected, _ = whole
    for levels in (0, 1):
        assert run(zygote, tmp_path, (*COMMAND, f'--levels={levels}')) == 0
    assert bits(tmp_path) == expected


def test_interrupted_training_run(zygote, tmp_path):
    """`train`, killed after each write in turn."""

    command = ('train', *TINY_FLAGS, '--quiet')
    assert run(zygote, tmp_path / 'whole', command) == 0
    number = 1
    while run(zygote, tmp_path / str(number), command, die=['replace', number, 'after']) == KILLED:
        assert run(zygote, tmp_path / str(number), command) == 0
        assert content_digests(tmp_path / str(number)) == content_digests(tmp_path / 'whole'), (
            f'killed at {number}'
        )
        number += 1
    assert number > 6


def test_the_comparison_can_fail(zygote, whole, tmp_path):
    """Another replicate ends with other bits in the same files."""

    expected, _ = whole
    assert run(zygote, tmp_path, (*COMMAND, '--replicate=2')) == 0
    other = {name.replace('replicate_2', 'replicate_1'): digest for name, digest in bits(tmp_path).items()}
    assert set(other) == set(expected)
    assert (
        other[next(name for name in other if name.endswith('level_1/main/model_ep2_it0.pth'))]
        not in expected.values()
    )
