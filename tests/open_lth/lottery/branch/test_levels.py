import pytest

from open_lth.lottery.branch.base import parse_levels


@pytest.mark.parametrize(
    'text, levels',
    [
        ('0', [0]),
        ('3,1,2', [1, 2, 3]),
        ('2-4', [2, 3, 4]),
        ('0,2-4,3,10', [0, 2, 3, 4, 10]),
        ('5-5', [5]),
        ('4-2', []),
        ('1,1,1', [1]),
    ],
)
def test_lists_and_ranges(text, levels):
    assert parse_levels(text) == levels


@pytest.mark.parametrize('text', ['', 'a', '1,', ',1', '1-', '-1', '1--2', '1-2-3', '1.5', '1;2', '0x1', '²'])
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError):
        parse_levels(text)
