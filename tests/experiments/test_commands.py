"""The experiments as a user types them: all four at scale `smoke`, killed, failing, listed."""

import fcntl
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pandas as pd
import pytest

from experiments import command, executor, runs, scales
from open_lth.foundations import paths
from tests import helpers
from tests.conftest import make_platform
from tests.experiments.conftest import all_installed
from tests.experiments.test_executor import wait_for

FOLDERS = ('root', 'results')


def command_line(name, folder, *flags):
    return [sys.executable, '-m', f'experiments.{name}', '--scale=smoke', *flags,
            *(f'--{each}={folder / each}' for each in FOLDERS)]


def here(name, folder, *flags):
    """A command in this process, which has imported everything."""
    return helpers.run_main(entry=lambda: command.main(name, command_line(name, folder, *flags)[3:]))


def table(name, folder):
    return pd.read_csv(folder / 'results' / 'smoke' / f'{name}.csv')


def text(name, folder):
    return (folder / 'results' / 'smoke' / f'{name}.md').read_text()


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    """The folder in which all four have been run. Figure 6 needs all runs of the first two."""
    folder = tmp_path_factory.mktemp('smoke')
    with all_installed():
        for name, summary in (('fig6_runtime', '64 of 64 runs to do'), ('fig5_accuracy', '0 of 32 runs to do'),
                              ('table2_baselines', '0 of 2 runs to do'),
                              ('table5_switching', '2 of 4 runs to do')):
            outcome = here(name, folder, '--jobs=2')
            assert outcome.status == 0, outcome.out + outcome.err
            assert summary in outcome.out
    return folder


def test_all_is_written(smoke):
    assert sorted(path.name for path in (smoke / 'results' / 'smoke').iterdir()) == [
        'fig5_accuracy.csv', 'fig5_accuracy.md', 'fig5_accuracy.png', 'fig6_runtime.csv', 'fig6_runtime.md',
        'fig6_runtime.png', 'table2_baselines.csv', 'table2_baselines.md', 'table5_switching.csv',
        'table5_switching.md', 'table5_switching.png']
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
    for name, num in zip(command.NAMES, ('2', '32', '64', '4'), strict=True):
        assert [name, 'smoke', num, '0', '0', str(smoke / 'results' / 'smoke' / f'{name}.md')] in lines
    other = helpers.run_main('experiments', '--scale=smoke', '--replicates=2', f'--root={smoke / "root"}')
    assert ['fig5_accuracy', 'smoke', '32', '32', '0'] in [line.split()[:5] for line in other.out.splitlines()]


def test_killed_experiments_go_on_and_end_with_the_same_tables(smoke, tmp_path, monkeypatch):
    """The whole program is killed in a training, then a process that times; some runs are there already."""
    shutil.copytree(smoke / 'root', tmp_path / 'root')
    with make_platform(root=tmp_path / 'root').in_force():
        scale = scales.get('smoke')
        vgg, resnet = scale.networks
        removed = [runs.dense(scale, vgg, 1), runs.at_init(scale, vgg, 'snip', 4, 1), runs.imp(scale, resnet, 1)]
    for run in removed:
        shutil.rmtree(run.directory)
    output, imp = tmp_path / 'output', pathlib.Path(removed[-1].directory)
    with open(output, 'w') as stream, subprocess.Popen(
            command_line('fig5_accuracy', tmp_path), cwd=helpers.REPOSITORY, stdout=stream) as process:
        wait_for(lambda: '[2/3]' in output.read_text() and (imp / 'level_0' / 'main').exists())
        process.send_signal(signal.SIGKILL)
    with open(imp / 'experiment.log', 'a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)  # whoever works on it holds it until its end
    assert not (tmp_path / 'results').exists()
    with make_platform(root=tmp_path / 'root').in_force():
        assert [run.is_done for run in removed] == [True, True, False]  # nobody has gone on with the last one

    with monkeypatch.context() as patch:
        killed = kill_the_first_timing(patch)
        outcome = here('fig6_runtime', tmp_path)
    assert outcome.status == 1 and '4 of 64 runs to do' in outcome.out
    assert f'{killed[0]}: FAILED (killed by signal 9' in outcome.out and outcome.out.count('FAILED') == 1
    for name, summary in (('fig6_runtime', '1 of 64'), ('fig5_accuracy', '0 of 32'), ('table2_baselines', '0 of 2')):
        outcome = here(name, tmp_path)
        assert outcome.status == 0 and f'{summary} runs to do' in outcome.out, outcome.out + outcome.err

    assert_same_but_for_clocks('table2_baselines', smoke, tmp_path, [], ())
    assert_same_but_for_clocks('fig5_accuracy', smoke, tmp_path, [('vgg', 'snip', 4)], ('scoring_',))
    timed_again = [('vgg', 'snip', 4), ('resnet', 'imp', 4), ('resnet', 'imp', 16), ('vgg', 'dense', 1),
                   ('resnet', 'dense', 1)]  # the dense models took part in all timings
    assert_same_but_for_clocks('fig6_runtime', smoke, tmp_path, timed_again, ('cpu_', 'cuda_'))


def kill_the_first_timing(monkeypatch):
    """A list that will hold the title of the task whose process is killed while it works."""
    real, killed = executor._start, []

    def start(processes, task, num_threads):
        process = real(processes, task, num_threads)
        if task.alone and not killed:
            wait_for(pathlib.Path(executor.log_path(task)).exists)
            os.kill(process.pid, signal.SIGKILL)
            killed.append(task.title)
        return process

    monkeypatch.setattr(executor, '_start', start)
    return killed


def assert_same_but_for_clocks(name, whole, killed, done_again, measured):
    """The same table, but for what is measured (columns that begin with these) of the models that were done again.

    Of those, the hybrids' layers are chosen by the clock too, and with them how many parameters are stored densely.
    """
    expected, shown = table(name, whole), table(name, killed)
    if done_again:
        again = pd.MultiIndex.from_frame(expected[['network', 'method', 'ratio']]).isin(done_again)
        assert again.any()
        pd.testing.assert_frame_equal(shown[~again], expected[~again], check_exact=True)
        if 'form' in expected:
            chosen_again = again & (expected.form == 'hybrid')
            for frame in (expected, shown):
                frame.loc[chosen_again, ['num_params_mean', 'spatial_compression_mean']] = 0
    columns = [column for column in expected if not column.startswith(measured)]
    pd.testing.assert_frame_equal(shown[columns], expected[columns], check_exact=True)


def test_a_failed_run_is_reported_and_the_rest_carried_on(tmp_path):
    with make_platform(root=tmp_path / 'root').in_force():
        first = runs.dense(scales.get('smoke'), scales.get('smoke').networks[0], 1)
        os.makedirs(first.directory)
        checkpoint = pathlib.Path(paths.checkpoint(first.directory))
        checkpoint.write_text('scribble')
    outcome = here('table2_baselines', tmp_path, '--replicates=2', '--jobs=2')
    assert outcome.status == 1
    [line] = [line for line in outcome.out.splitlines() if 'FAILED' in line]
    assert 'vgg dense, replicate 1' in line and 'exit status 2: error: ' in line and str(checkpoint) in line
    shown = table('table2_baselines', tmp_path).set_index('network')
    assert shown.accuracy_n.to_dict() == {'vgg': 1, 'resnet': 2} and shown.accuracy_std['resnet'] > 0
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
