import pytest

from open_lth.cli import runner_registry
from open_lth.foundations.runner import Runner


def test_commands_in_order():
    assert list(runner_registry.registered_runners) == ['train', 'lottery', 'lottery_branch', 'branch']


@pytest.mark.parametrize('name', ['train', 'lottery', 'lottery_branch', 'branch'])
def test_commands_can_be_imported_and_described(name):
    runner = runner_registry.get(name)
    assert runner.description() == runner_registry.DESCRIPTIONS[name]
    assert not isinstance(runner, str)
    if 'branch' not in name:
        assert issubclass(runner, Runner)


def test_unknown_commands_are_refused():
    with pytest.raises(ValueError):
        runner_registry.get('nope')
