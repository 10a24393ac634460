import sys

import pytest

from open_lth.cli.arg_utils import maybe_get_arg


@pytest.fixture
def argv(monkeypatch):
    return lambda *args: monkeypatch.setattr(sys, 'argv', ['main.py', *args])


def test_flags(argv):
    argv('lottery', '--levels=3', '--name', 'x')
    assert maybe_get_arg('levels') == '3' and maybe_get_arg('name') == 'x'
    assert maybe_get_arg('absent') is None


def test_positionals(argv):
    argv('lottery_branch', 'retrain', '--levels=3')
    assert maybe_get_arg('subcommand', positional=True) == 'lottery_branch'
    assert maybe_get_arg('branch', positional=True, position=1) == 'retrain'
    assert maybe_get_arg('more', positional=True, position=2) is None


def test_boolean_flags(argv):
    argv('lottery', '--pretrain')
    assert maybe_get_arg('pretrain', boolean_arg=True) is True
    argv('lottery')
    assert not maybe_get_arg('pretrain', boolean_arg=True)


@pytest.mark.parametrize('args', [(), ('--levels',), ('--levels', '--other')])
def test_unreadable_arguments_are_none_and_nothing_is_printed(argv, capsys, args):
    argv(*args)
    assert maybe_get_arg('levels') is None and maybe_get_arg('subcommand', positional=True) is None
    assert capsys.readouterr() == ('', '')


def test_help_is_left_to_the_full_parser(argv):
    argv('train', '-h', '--levels=3')
    assert maybe_get_arg('levels') == '3'
