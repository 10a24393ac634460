"""Declared runs: their commands end in the folders that they say."""

import json
import pathlib

import pytest

from experiments import methods, runs, scales
from open_lth.foundations import paths
from tests import helpers

pytestmark = pytest.mark.usefixtures('installed')


def one_of_each(scale):
    network = scale.networks[-1]
    ratio = scale.ratios[-1]
    return [runs.dense(scale, network, 2), runs.imp(scale, network, 2),
            *(runs.at_init(scale, network, method, ratio, 2) for method in methods.AT_INIT)]


@pytest.mark.parametrize('scale', scales.NAMES)
def test_a_command_ends_in_the_folder_that_the_run_declares(scale, local_platform):
    for run in one_of_each(scales.get(scale)):
        outcome = helpers.run_engine(*run.command, '--display_output_location', root=local_platform.root)
        assert outcome.status == 0, outcome.err
        said = outcome.out.strip().splitlines()[-1]
        assert said == run.directory or pathlib.Path(said).parent.parent == pathlib.Path(run.directory)


def test_every_method_and_ratio_is_declared_once(local_platform):
    scale = scales.get('small')
    declared = runs.comparison(scale)
    models = [(model.network.name, model.method, model.ratio, model.replicate)
              for run in declared for model in run.models]
    assert len(set(models)) == len(models) == 2 * 3 * (1 + 8 * 4)
    assert len({run.directory for run in declared}) == len(declared)
    assert all(run.after in declared for run in declared if run.after)


def test_a_method_is_scored_at_the_ratio_asked_for(local_platform):
    scale = scales.get('small')
    run = runs.at_init(scale, scale.networks[0], 'synflow', 64, 1)
    assert {'--strategy=synflow', '--schedule=exponential', '--prune_fraction=0.984375'} <= set(run.command)


def test_what_is_not_trained_is_not_a_number(local_platform):
    scale = scales.get('smoke')
    results = runs.read(runs.comparison(scale))
    assert len(results) == 2 * (1 + 8 * 2) and results.accuracy.isna().all()


def test_results_are_those_of_the_last_step(local_platform):
    scale = scales.get('smoke')
    run = runs.at_init(scale, scale.networks[0], 'snip', 4, 1)
    [model] = run.models
    location = pathlib.Path(model.location)
    location.mkdir(parents=True)
    end = model.end_step
    (location / 'logger').write_text(f'test_accuracy,0,0.1\ntest_accuracy,{end.iteration},0.75')
    pathlib.Path(paths.sparsity_report(location)).write_text(json.dumps({'total': 800.0, 'unpruned': 200.0}))
    (location / 'scoring.json').write_text(json.dumps(
        {'scoring_time_s': 1.5, 'peak_memory_bytes': None, 'empty_layers': ['fc.weight']}))
    assert runs.read([run]).accuracy.isna().all() and not run.is_done  # the weights mark it as finished
    pathlib.Path(paths.model(location, end)).touch()
    [row] = runs.read([run]).to_dict('records')
    assert (row['accuracy'], row['num_prunable'], row['num_kept'], row['num_empty_layers']) == (0.75, 800, 200, 1)
    assert row['top5_accuracy'] != row['top5_accuracy'] and row['scoring_memory_bytes'] != row['scoring_memory_bytes']
