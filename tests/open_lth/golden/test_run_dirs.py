"""Every command of the golden files ends the same way and names the same run directory."""

import hashlib

import pytest

from tests.helpers import assert_one_line_error, list_files, load_golden, run_engine

UPSTREAM = load_golden('run_dirs_upstream')['commands']
FORK = load_golden('run_dirs_fork')['commands']
# Upstream wins where both differ: its mnist_lenet trains 40 epochs, the fork's 16; so names differ.
ONLY_IN_THE_FORK = 'train --default_hparams=mnist_lenet_300_100'
# Defects of OpenLTH whose message is now one line with status 2.
EXCEPTIONS = ('ValueError', 'IndexError')


def fork_commands():
    for command in FORK:
        differs = ' '.join(command['argv']) == ONLY_IN_THE_FORK
        reason = "upstream's mnist_lenet default of 40ep wins over the fork's 16ep"
        yield pytest.param(command, marks=pytest.mark.skip(reason=reason) if differs else ())


def check(command, root):
    outcome = run_engine(*command['argv'], '--display_output_location', root=root)
    if command['exit'] in EXCEPTIONS:
        assert_one_line_error(outcome)
    else:
        assert outcome.status == command['exit'], (outcome.out, outcome.err)
        assert 'Traceback' not in outcome.err
    if command['exit'] == 0:
        assert outcome.out == command['printed'].replace('ROOT', str(root)) + '\n'
    assert not list_files(root)


@pytest.mark.parametrize('command', UPSTREAM, ids=lambda command: ' '.join(command['argv']))
def test_upstream_command(command, root):
    check(command, root)


@pytest.mark.parametrize('command', fork_commands(), ids=lambda command: ' '.join(command['argv']))
def test_fork_command(command, root):
    check(command, root)


def test_golden_names_are_the_md5_of_their_inputs():
    """The vectors themselves are sound: the name is prefix and md5 of the text given with it."""

    inputs = {
        name: text for command in UPSTREAM + FORK for name, text in (command.get('md5_inputs') or {}).items()
    }
    assert len(inputs) > 40
    for name, text in inputs.items():
        assert name.rpartition('_')[2] == hashlib.md5(text.encode()).hexdigest()
