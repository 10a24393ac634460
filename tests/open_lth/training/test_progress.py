"""A bar on a terminal, lines elsewhere, nothing when quiet."""

import re

import pytest

from tests import helpers
from tests.helpers import TINY_FLAGS, TINY_LOTTERY, succeed


@pytest.fixture
def terminal(monkeypatch):
    """The streams that a command gets say that they are a terminal."""

    monkeypatch.setattr(helpers.Stream, 'isatty', lambda self: True)


def test_bar_on_a_terminal(root, terminal):
    outcome = succeed('train', *TINY_FLAGS, root=root)
    last = re.split(r'[\r\n]+', outcome.err.strip())[-1]
    for pattern in (r'ep 2/2', r'loss \d+\.\d{3}', r'test \d+\.\d{2}%', r'\d+ images/s', r'eta '):
        assert re.search(pattern, last), (pattern, last)
    assert 'test\tep' not in outcome.out, 'the bar shows it'


def test_bar_names_the_level(root, terminal):
    flags = [flag for flag in TINY_LOTTERY if flag != '--quiet']
    outcome = succeed(*flags, '--levels=1', '--rewinding_steps=3it', root=root)
    assert all(title in outcome.err for title in ('pretraining', 'level 0/1', 'level 1/1'))


def test_final_accuracy_stays_on_the_screen(root, terminal):
    outcome = succeed('train', *TINY_FLAGS, root=root)
    [logger] = root.glob('train_*/replicate_1/main/logger')
    accuracy = float(logger.read_text().splitlines()[-2].split(',')[2])
    assert f'test {100 * accuracy:.2f}%' in re.split(r'[\r\n]+', outcome.err.strip())[-1]


def test_quiet_silences_the_bar(root, terminal):
    outcome = succeed('train', *TINY_FLAGS, '--quiet', root=root)
    assert outcome.out == outcome.err == ''


def test_no_bar_without_a_terminal(root):
    outcome = succeed('train', *TINY_FLAGS, root=root)
    assert outcome.err == '' and outcome.out.count('test\tep') == 3
