import numpy as np
import pytest

from open_lth.foundations.step import Step


@pytest.mark.parametrize(
    'text, iteration',
    [
        ('0ep', 0),
        ('0it', 0),
        ('0ep0it', 0),
        ('3ep', 30),
        ('7it', 7),
        ('2ep5it', 25),
        ('1ep25it', 35),
        ('25it', 25),
    ],
)
def test_text_is_read_with_the_epoch_length(text, iteration):
    step = Step.from_str(text, 10)
    assert (step.iteration, step.ep, step.it) == (iteration, iteration // 10, iteration % 10)


@pytest.mark.parametrize(
    'text',
    [
        '',
        'hello',
        '10',
        'ep',
        'it',
        'epit',
        '1it2ep',
        '1ep2',
        '01ep',
        '1ep02it',
        ' 1ep',
        '1ep ',
        '1 ep',
        '1ep 2it',
        '1.5ep',
        '1e2it',
        '-1ep',
        '-1it',
        '+1ep',
        '1ep2it3it',
        '1EP',
        '１ep',
    ],
)
def test_malformed_text_is_refused(text):
    with pytest.raises(ValueError):
        Step.from_str(text, 10)


def test_negative_iterations_behind_an_epoch_are_accepted():
    """Reproduced: the text round-trips, and the sum is not negative."""

    assert Step.from_str('1ep-1it', 10).iteration == 9


@pytest.mark.parametrize(
    'text, zero',
    [
        ('0ep', True),
        ('0it', True),
        ('0ep0it', True),
        ('1ep', False),
        ('0', False),
        ('', False),
        ('0it0ep', False),
    ],
)
def test_zero_has_exactly_three_spellings(text, zero):
    assert Step.str_is_zero(text) is zero


def test_constructors_agree():
    assert (
        Step.from_epoch(2, 13, 10)
        == Step.from_iteration(33, 10)
        == Step.from_str('3ep3it', 10)
        == Step(33, 10)
    )
    assert Step.zero(10) == Step(0, 10)


@pytest.mark.parametrize('iteration, iterations_per_epoch', [(-1, 10), (0, 0), (5, -1)])
def test_impossible_steps_are_refused(iteration, iterations_per_epoch):
    with pytest.raises(ValueError):
        Step(iteration, iterations_per_epoch)


def test_order_is_by_iteration():
    early, late = Step(3, 10), Step(4, 10)
    assert early < late and early <= late and early != late and late > early and late >= early
    assert early <= Step(3, 10) and early >= Step(3, 10) and early == Step(3, 10)
    assert not (early > late or early == late or early != Step(3, 10))


@pytest.mark.parametrize('compare', [
    lambda a, b: a < b, lambda a, b: a <= b, lambda a, b: a == b,
    lambda a, b: a != b, lambda a, b: a > b, lambda a, b: a >= b])
@pytest.mark.parametrize('other', [Step(3, 11), 3, None, '3it'])
def test_incomparable_steps_are_refused(compare, other):
    with pytest.raises(ValueError):
        compare(Step(3, 10), other)


def test_steps_are_not_hashable():
    with pytest.raises(TypeError):
        hash(Step(3, 10))


def test_numpy_numbers_print_as_plain_integers():
    step = Step.from_str('2ep3it', np.int64(10))
    assert f'{step.ep} {step.it} {step.iteration}' == '2 3 23'
    assert type(step.ep) is int and type(step.it) is int
