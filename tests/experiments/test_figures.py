"""Tables and figures made of results that are written down here."""

import dataclasses
import json
import math
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest

from experiments import fig5_accuracy, fig6_runtime, measurements, methods, scales, table2_baselines, tables
from open_lth.models import registry as models_registry
from tests.conftest import make_platform
from tests.experiments.conftest import all_installed

RATIOS = (4, 16)


def results(accuracies):
    """{(method, ratio, replicate): accuracy} of the VGG; all else that is declared is missing."""
    rows = [{'network': 'vgg', 'method': method, 'ratio': ratio, 'replicate': replicate,
             'accuracy': accuracies.get((method, ratio, replicate), math.nan), 'num_prunable': 160,
             'num_kept': 160 / ratio, 'top5_accuracy': math.nan, 'scoring_time_s': 1.0, 'scoring_memory_bytes': 2**20,
             'num_empty_layers': 0}
            for replicate in (1, 2) for method, ratio in [('dense', 1), *(
                (method, ratio) for method in ('imp', *methods.AT_INIT) for ratio in RATIOS)]]
    return pd.DataFrame(rows)


def flat(imp, others, **replaced):
    """All methods at all ratios have the same accuracies in both replicates."""
    found = {('dense', 1, replicate): 0.9 for replicate in (1, 2)}
    for replicate in (0, 1):
        for ratio in RATIOS:
            found |= {(method, ratio, replicate + 1): others[replicate] for method in methods.AT_INIT}
            found['imp', ratio, replicate + 1] = imp[replicate]
    return found | {(name, 16, replicate + 1): values[replicate]
                    for name, values in replaced.items() for replicate in (0, 1)}


@pytest.fixture(scope='module')
def scale():
    return scales.get('smoke')


# ---- Figure 5

def test_change_is_against_the_dense_model_of_the_same_replicate():
    table = fig5_accuracy.analyse(results(
        {('dense', 1, 1): 0.8, ('dense', 1, 2): 0.9, ('imp', 4, 1): 0.7, ('imp', 4, 2): 0.6}))
    row = tables.find(table, method='imp', ratio=4)
    assert row.accuracy_mean == pytest.approx(0.65)
    assert (row.change_mean, row.change_std) == pytest.approx((-0.2, 0.1 * math.sqrt(2)))  # -0.1 and -0.3


def test_a_replicate_without_its_dense_model_has_no_change():
    table = fig5_accuracy.analyse(results({('dense', 1, 2): 0.9, ('imp', 4, 1): 0.7, ('imp', 4, 2): 0.6}))
    row = tables.find(table, method='imp', ratio=4)
    assert (row.accuracy_n, row.change_n) == (2, 1) and row.change_mean == pytest.approx(-0.3)


def test_missing_values_are_shown_as_missing(scale):
    table = fig5_accuracy.analyse(results({('dense', 1, 1): 0.9, ('imp', 4, 1): 0.7}))
    text = fig5_accuracy.report(scale, table)
    lines = text.splitlines()
    assert '| IMP (DNNShifter) | 70.00 (1) | missing |' in lines
    assert '| SNIP | missing | missing |' in lines
    assert '| *paper: IMP (DNNShifter)* | +0.28 | +0.40 |' in lines
    assert '16x: cannot be said, for these are missing: IMP (DNNShifter), random' in text
    assert 'nan' not in text.lower()


@pytest.mark.parametrize('accuracies, expected', [
    (flat(imp=(0.8, 0.8), others=(0.7, 0.7)), '**holds** for all methods'),
    # 1 point below, where the common deviation is sqrt((0.0141^2 + 0.0141^2) / 2) = 1.41 points.
    (flat(imp=(0.70, 0.72), others=(0.71, 0.73)), '**holds** for all methods'),
    (flat(imp=(0.80, 0.80), others=(0.7, 0.7), snip=(0.85, 0.85)),
     '**does not hold**: SNIP is 5.00 points better'),
])
def test_the_papers_finding_is_checked(scale, accuracies, expected):
    text = fig5_accuracy.report(scale, fig5_accuracy.analyse(results(accuracies)))
    [line] = [line for line in text.splitlines() if line.startswith('* cifar_narrowvgg_5_8, digits, 16x')]
    assert line.endswith(expected)


def test_a_gain_has_a_sign(scale):
    text = fig5_accuracy.report(scale, fig5_accuracy.analyse(results(flat(imp=(0.95, 0.95), others=(0.8, 0.8)))))
    assert '| IMP (DNNShifter) | +5.00 ± 0.00 (2) | +5.00 ± 0.00 (2) |' in text
    assert '| SNIP | -10.00 ± 0.00 (2) |' in text and '| SNIP | 80.00 ± 0.00 (2) |' in text


def test_collapsed_layers_are_shown(scale):
    rows = results(flat((0.8, 0.8), (0.7, 0.7)))
    assert 'no weight is left' not in fig5_accuracy.report(scale, fig5_accuracy.analyse(rows))
    rows.loc[(rows.method == 'magnitude') & (rows.ratio == 16), 'num_empty_layers'] = [2, 4]
    text = fig5_accuracy.report(scale, fig5_accuracy.analyse(rows))
    assert '| magnitude at init | 0.0 ± 0.0 (2) | 3.0 ± 1.4 (2) |' in text


def test_the_cost_of_scoring_is_over_all_masks(scale):
    rows = results(flat((0.8, 0.8), (0.7, 0.7)))
    rows.loc[rows.method == 'snip', 'scoring_time_s'] = [1.0, 2.0, 3.0, 6.0]  # mean 3; squares 4 + 1 + 0 + 9, over 3
    text = fig5_accuracy.report(scale, fig5_accuracy.analyse(rows))
    assert '| SNIP | 3.00 ± 2.16 (4) | 1 ± 0 (4) |' in text


def test_paper_changes_of_both_networks():
    vgg, resnet = (fig5_accuracy.paper_changes(network) for network in scales.get('paper').networks)
    assert vgg == {('imp', 2): 0.18, ('imp', 4): 0.28, ('imp', 16): 0.4, ('imp', 64): 0.33, ('imp', 256): -1.57,
                   ('random', 256): -31.09, ('synflow', 256): -6.21, ('ntk_sap', 256): -5.15}
    assert resnet['imp', 256] == pytest.approx(40.63 - 54.99)


def curves(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_the_figure_shows_what_there_is(scale):
    known = {('dense', 1, 1): 0.9, ('imp', 4, 1): 0.7, ('imp', 16, 1): 0.6, ('imp', 4, 2): 0.8, ('snip', 16, 1): 0.5}
    axes, other = fig5_accuracy.figure(scale, fig5_accuracy.analyse(results(known))).axes
    assert curves(axes)['IMP (DNNShifter)'] == ([4, 16], [pytest.approx(75), pytest.approx(60)])
    assert curves(axes)['SNIP'] == ([16], [50])
    assert set(curves(axes)) == {'dense', 'IMP (DNNShifter)', 'SNIP'} and not curves(other)
    assert axes.get_ylabel() == 'top-1 test accuracy (%)' and axes.get_xscale() == 'log'


# ---- Table 2

def test_the_counts_of_the_papers_networks(scale):
    text = table2_baselines.report(scale, table2_baselines.analyse(results({})))
    assert '| cifar_vgg_16 | 14,728,266 | 14,715,584 | 14,710,464 | 5,120 | 4,234 | 8,448 | 14,719,818 |' in text
    assert '| tinyimagenet_resnet_50 | 25,557,032 | 25,502,912 | 23,454,912 | 2,048,000 | 1,000 | 53,120 |' in text
    assert '| *paper: VGG-16, CIFAR-10* | 14.72 M | 56.2 | 93.21 ± 0.06 (3 or more) | 160ep | 128 | 0.1 |' in text


def test_another_network_is_not_the_papers(scale, monkeypatch):
    real = table2_baselines.build
    monkeypatch.setattr(table2_baselines, 'build', lambda name: real(
        'cifar_vgg_13' if name == 'cifar_vgg_16' else name))
    with pytest.raises(ValueError, match='cifar_vgg_16 is not the network of the paper'):
        table2_baselines.report(scale, table2_baselines.analyse(results({})))


# ---- Figure 6

@pytest.fixture(scope='module')
def measured_root(scale, tmp_path_factory):
    """Where one measurement of Figure 6 has been made: IMP at 4x of the VGG, of models that are not trained."""
    root = tmp_path_factory.mktemp('measured') / 'root'
    with all_installed(), make_platform(root=root).in_force():
        task = the_measurement(fig6_runtime.runs(scale))
        for trained in (task.model, task.baseline):
            model = models_registry.get(trained.network.training.model_hparams)
            model.save(trained.location, trained.end_step)
            (pathlib.Path(trained.location) / 'logger').write_text('')
        pathlib.Path(task.directory).mkdir()
        task.work()
    return root


@pytest.fixture
def measured(scale, measured_root, local_platform):
    """(all tasks of Figure 6, the one that is done)."""
    shutil.copytree(measured_root, local_platform.root)
    tasks = fig6_runtime.runs(scale)
    return tasks, the_measurement(tasks)


def the_measurement(tasks):
    [task] = [task for task in tasks if task.title == 'time vgg IMP (DNNShifter) 4x, replicate 1']
    return task


def test_every_form_is_measured_beside_its_dense_model(measured):
    tasks, task = measured
    assert task.is_done
    rows = fig6_runtime.read(tasks).set_index(['network', 'method', 'ratio', 'form', 'replicate'])
    assert len(rows) == 2 * (2 + 2 * 4 + 7 * 2 * 3)
    done = rows[rows.num_params.notna()]
    assert sorted((method, ratio, form) for _, method, ratio, form, _ in done.index) == [
        ('dense', 1, 'fused'), ('dense', 1, 'unfused'), ('imp', 4, 'exact'), ('imp', 4, 'hybrid'),
        ('imp', 4, "paper's rule"), ('imp', 4, 'unconverted')]
    exact, hybrid = (done.loc['vgg', 'imp', 4, form, 1] for form in ('exact', 'hybrid'))
    assert hybrid.num_params <= exact.num_params and hybrid.cpu_batch_1_over_fused > 0
    assert exact.spatial_compression == done.loc['vgg', 'dense', 1, 'unfused', 1].num_params / exact.num_params
    assert exact.cpu_batch_1_over_unfused_low <= exact.cpu_batch_1_over_unfused <= exact.cpu_batch_1_over_unfused_high


def test_a_measurement_is_read_from_its_file_and_repeated_for_other_settings(measured):
    _, task = measured
    path = pathlib.Path(task.directory) / 'runtime.json'
    stored = json.loads(path.read_text())
    stored['forms']['exact']['profile']['num_params'] = 123
    path.write_text(json.dumps(stored))
    assert task.is_done and task.forms()['exact'].profile.num_params == 123
    assert not dataclasses.replace(task, timing=scales.Timing()).is_done


def test_figure_6_shows_missing_as_missing(scale, measured):
    tasks, _ = measured
    table = fig6_runtime.analyse(fig6_runtime.read(tasks))
    lines = {tuple(cell.strip() for cell in line.split('|')[1:3]): line
             for line in fig6_runtime.report(scale, table).split('## cifar_resnet')[0].splitlines()
             if line.startswith('|')}
    assert 'missing' not in lines['IMP (DNNShifter) 4x', "paper's rule"]
    assert '14,296,439 | ' in lines['IMP (DNNShifter) 4x', "paper's rule"]  # the notebook's, beside ours
    assert lines['IMP (DNNShifter) 16x', 'exact'].count('missing') == 6
    assert lines['SNIP 4x', 'exact'].count('missing') == 6
    assert 'nan' not in ' '.join(lines.values()).lower()
    speedups, resnet, sizes, _ = fig6_runtime.figure(scale, table).axes
    assert list(curves(sizes)) and speedups.get_ylabel() == 'CPU speed-up over dense, unfused'


def test_a_collapsed_network_is_marked(scale, measured):
    """Guessing among ten classes is right in 10 % of the cases."""
    tasks, task = measured
    log_accuracy(task.baseline, 0.95)
    for accuracy, is_marked in ((0.05, True), (0.11, True), (0.112, False), (0.9, False)):
        log_accuracy(task.model, accuracy)
        table = fig6_runtime.analyse(fig6_runtime.read(tasks))
        text = fig6_runtime.report(scale, table)
        exact = next(line for line in text.splitlines() if line.startswith('| IMP (DNNShifter) 4x | exact |'))
        assert exact.count('†') == 3 * is_marked  # spatial compression and two speed-ups
        assert text.count('†') == 4 * 3 * is_marked + 2  # of four forms; and in the remarks on both networks
        speedups = fig6_runtime.figure(scale, table).axes[0]
        hollow = [line for line in speedups.lines if line.get_markerfacecolor() == 'white' and len(line.get_xdata())]
        # exact, hybrid, by the paper's rule
        assert [list(line.get_xdata()) for line in hollow] == [[4]] * 3 * is_marked


def log_accuracy(trained, accuracy):
    (pathlib.Path(trained.location) / 'logger').write_text(f'test_accuracy,{trained.end_step.iteration},{accuracy}')


def test_what_cannot_be_measured_yet_says_what_it_needs(scale, local_platform):
    task = measurements.declare(scale)[0]
    assert not task.is_done and task.blocked_by == f'a trained model in {task.model.location}'


def test_spread_of_a_single_measurement_is_its_interval(scale):
    row = {'form': 'exact', 's_n': 1, 's_mean': 1.5, 's_std': np.nan, 's_low_mean': 1.4, 's_high_mean': 1.62}
    assert fig6_runtime._speedup_cell(pd.Series(row), 's') == '1.50x [1.40, 1.62] (1)'
    several = row | {'s_n': 3, 's_std': 0.1}
    assert fig6_runtime._speedup_cell(pd.Series(several), 's') == '1.50x ± 0.10 (3)'
