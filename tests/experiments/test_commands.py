"""The experiments as a user types them: all three at scale `smoke`, killed, failing, listed."""

import os
import pathlib
import signal
import subprocess
import sys

import pandas as pd
import pytest

from experiments import command, runs, scales
from open_lth.foundations import paths
from tests import helpers
from tests.conftest import make_platform
from tests.experiments.test_executor import wait_for

FOLDERS = ('root', 'results')


def command_line(name, folder, *flags):
    return [sys.executable, '-m', f'experiments.{name}', '--scale=smoke', *flags,
            *(f'--{each}={folder / each}' for each in FOLDERS)]


def typed(name, folder, *flags):
    """A command in a shell of its own, to its end."""
    return subprocess.run(command_line(name, folder, *flags), cwd=helpers.REPOSITORY, capture_output=True, text=True)


def here(name, folder, *flags):
    """The same in this process, which has imported everything."""
    return helpers.run_main(entry=lambda: command.main(name, command_line(name, folder, *flags)[3:]))


def table(name, folder):
    return pd.read_csv(folder / 'results' / 'smoke' / f'{name}.csv')


def text(name, folder):
    return (folder / 'results' / 'smoke' / f'{name}.md').read_text()


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    """The folder in which all three have been run. Figure 6 needs all runs of the other two."""
    folder = tmp_path_factory.mktemp('smoke')
    for name, summary in (('fig6_runtime', '64 of 64 runs to do'), ('fig5_accuracy', '0 of 32 runs to do'),
                          ('table2_baselines', '0 of 2 runs to do')):
        outcome = typed(name, folder, '--jobs=2')
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        assert summary in outcome.stdout and 'Traceback' not in outcome.stderr
    return folder


def test_all_is_written(smoke):
    assert sorted(path.name for path in (smoke / 'results' / 'smoke').iterdir()) == [
        'fig5_accuracy.csv', 'fig5_accuracy.md', 'fig5_accuracy.png', 'fig6_runtime.csv', 'fig6_runtime.md',
        'fig6_runtime.png', 'table2_baselines.csv', 'table2_baselines.md']
    for name in command.NAMES:
        assert 'missing' not in text(name, smoke).split('`missing`: not run yet, or failed.')[1]
        assert 'nan' not in text(name, smoke).lower().replace('resnet50_tinyimagenet', '')


def test_accuracies_are_those_of_the_runs(smoke):
    with make_platform(root=smoke / 'root').in_force():
        found = {(model.network.name, model.method, model.ratio): pathlib.Path(paths.logger(model.location)).read_text()
                 for run in runs.comparison(scales.get('smoke')) for model in run.models}
    shown = table('fig5_accuracy', smoke)
    assert len(shown) == len(found) == 34
    for row in shown.itertuples():
        logged = [line for line in found[row.network, row.method, row.ratio].splitlines()
                  if line.startswith('test_accuracy,')]
        assert float(logged[-1].split(',')[2]) == pytest.approx(row.accuracy_mean)


def test_ratios_are_those_asked_for(smoke):
    shown = table('fig5_accuracy', smoke).query('method != "dense"')
    assert (shown.compression_ratio_mean / shown.ratio - 1).abs().max() < 0.02


def test_exact_conversion_changes_no_answer_and_adds_no_parameter(smoke):
    shown = table('fig6_runtime', smoke)
    exact = shown[shown.form == 'exact'].set_index(['network', 'method', 'ratio'])
    sparse = shown[shown.form == 'unconverted'].set_index(['network', 'method', 'ratio'])
    assert len(exact) == len(sparse) == 32
    assert (exact.answers_changed_mean == 0).all()
    assert (exact.num_params_mean <= sparse.num_params_mean).all()
    assert (exact.num_params_mean < sparse.num_params_mean).any()
    assert (sparse.num_nonzero_params_mean < sparse.num_params_mean).all()


def test_the_list_of_experiments(smoke, installed):
    outcome = helpers.run_main('experiments', '--scale=smoke', *(f'--{each}={smoke / each}' for each in FOLDERS))
    assert outcome.status == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    for name, num in zip(command.NAMES, ('2', '32', '64'), strict=True):
        assert [name, 'smoke', num, '0', '0', str(smoke / 'results' / 'smoke' / f'{name}.md')] in lines
    other = helpers.run_main('experiments', '--scale=smoke', '--replicates=2', f'--root={smoke / "root"}')
    assert ['fig5_accuracy', 'smoke', '32', '32', '0'] in [line.split()[:5] for line in other.out.splitlines()]


def test_a_killed_experiment_goes_on_and_ends_with_the_same_table(tmp_path):
    killed, whole = tmp_path / 'killed', tmp_path / 'whole'
    flags = ('--replicates=3',)
    output = tmp_path / 'output'
    with open(output, 'w') as stream, subprocess.Popen(
            command_line('table2_baselines', killed, *flags), cwd=helpers.REPOSITORY, stdout=stream) as process:
        wait_for(lambda: '[2/6]' in output.read_text())
        process.send_signal(signal.SIGKILL)
    assert not (killed / 'results').exists()
    again, at_once = here('table2_baselines', killed, *flags), here('table2_baselines', whole, *flags)
    assert (again.status, at_once.status) == (0, 0), again.err + at_once.err
    assert '6 of 6 runs to do' in at_once.out
    assert any(f'{num} of 6 runs to do' in again.out for num in (1, 2, 3, 4))
    shown = table('table2_baselines', killed)
    assert shown.accuracy_n.tolist() == [3, 3] and (shown.accuracy_std > 0).any()
    pd.testing.assert_frame_equal(shown, table('table2_baselines', whole), check_exact=True)


def test_a_failed_run_is_reported_and_the_rest_carried_on(tmp_path):
    with make_platform(root=tmp_path / 'root').in_force():
        first = runs.dense(scales.get('smoke'), scales.get('smoke').networks[0], 1)
        os.makedirs(first.directory)
        checkpoint = pathlib.Path(paths.checkpoint(first.directory))
        checkpoint.write_text('scribble')
    outcome = here('table2_baselines', tmp_path, '--replicates=2')
    assert outcome.status == 1
    [line] = [line for line in outcome.out.splitlines() if 'FAILED' in line]
    assert 'vgg dense, replicate 1' in line and 'exit status 2: error: ' in line and str(checkpoint) in line
    assert table('table2_baselines', tmp_path).set_index('network').accuracy_n.to_dict() == {'vgg': 1, 'resnet': 2}
    assert '* vgg dense, replicate 1: exit status 2: error: ' in text('table2_baselines', tmp_path)
    listed = helpers.run_main(entry=lambda: command.main('table2_baselines', command_line(
        'table2_baselines', tmp_path, '--replicates=2', '--dry_run')[3:])).out
    assert [line.split()[0] for line in listed.splitlines()[::2]] == ['failed', 'done', 'done', 'done']
    checkpoint.unlink()
    outcome = here('table2_baselines', tmp_path, '--replicates=2')
    assert outcome.status == 0 and '1 of 4 runs to do' in outcome.out
    assert 'Failed' not in text('table2_baselines', tmp_path)


def test_a_dry_run_lists_commands_and_does_nothing(tmp_path):
    outcome = here('fig5_accuracy', tmp_path, '--dry_run')
    lines = outcome.out.splitlines()
    assert outcome.status == 0 and len(lines) == 64 and not list(tmp_path.iterdir())
    assert lines[0] == 'missing vgg IMP (DNNShifter) 2 levels, replicate 1'
    assert lines[3].strip().startswith('python main.py train --replicate=1 ')
    assert lines[3].endswith(f' --root={tmp_path / "root"}')


@pytest.mark.parametrize('flag, expected', [
    ('--scale=huge', 'no such --scale: huge'),
    ('--jobs=0', '--jobs must be at least 1'),
    ('--dataset=mnist', 'does not take images of 1x28x28'),
])
def test_mistakes_are_one_line(tmp_path, flag, expected):
    outcome = here('fig5_accuracy', tmp_path, flag)
    helpers.assert_one_line_error(outcome, expected)
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_named(tmp_path):
    with make_platform(root=tmp_path / 'root').in_force():
        first = runs.dense(scales.get('smoke'), scales.get('smoke').networks[0], 1)
    record = pathlib.Path(first.directory) / 'experiment.json'
    record.parent.mkdir(parents=True)
    record.write_text('{"seconds": 1')
    helpers.assert_one_line_error(here('table2_baselines', tmp_path, '--dry_run'), record, 'is damaged', 'delete it')
