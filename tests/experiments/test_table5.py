"""Table 5: what is declared, a whole run at scale `smoke`, and a training that is killed and goes on."""

import copy
import dataclasses
import json
import pathlib
import shutil

import pandas as pd
import pytest
import torch

from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.methods.switching import dynamic_ofa
from dnnshifter_ext.package import files
from experiments import command, executor, scales, table5_switching
from open_lth.models import registry as models_registry
from open_lth.models.cifar_vgg import Model
from open_lth.training import train
from tests import helpers
from tests.conftest import make_platform
from tests.experiments.conftest import all_installed

OURS = ['torch', 'torch_ahead', 'numpy']


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
    """The folder in which it has been run."""
    folder = tmp_path_factory.mktemp('table5')
    outcome = here(folder)
    assert outcome.status == 0 and '4 of 4 runs to do' in outcome.out, outcome.out + outcome.err
    return folder


def here(folder):
    argv = ['--scale=smoke', f'--root={folder / "root"}', f'--results={folder / "results"}']
    with all_installed():
        return helpers.run_main(entry=lambda: command.main('table5_switching', argv))


@pytest.fixture
def tasks(smoke):
    """(IMP, dense, super-network, measurement), as they were run."""
    with make_platform(root=smoke / 'root').in_force():
        yield table5_switching.runs(scales.get('smoke'))


def results(folder):
    return pd.read_csv(folder / 'results' / 'smoke' / 'table5_switching.csv').set_index('method')


def text(folder):
    return (folder / 'results' / 'smoke' / 'table5_switching.md').read_text()


# ---- what is declared

def test_the_portfolio_is_that_of_the_paper(local_platform):
    for name, portfolio in (('small', {16: 4, 64: 6, 128: 7, 256: 8}), ('paper', {16: 12, 64: 19, 128: 22, 256: 25})):
        scale = scales.get(name)
        assert scale.switching.portfolio == portfolio
        kept = 1 - scale.networks[0].lottery.pruning_hparams.pruning_fraction
        for ratio, level in portfolio.items():
            assert kept**-level == pytest.approx(ratio, rel=0.12)
        measured = [task for task in table5_switching.runs(scale) if task.alone]
        assert [task.replicate for task in measured] == [1, 2, 3]
        assert {model.network.name for task in measured for model in task.variants} == {'vgg'}


def test_what_is_not_trained_blocks_what_needs_it(local_platform):
    imp, dense, elastic, measurement = table5_switching.runs(scales.get('smoke'))
    assert not any(task.is_done for task in (imp, dense, elastic, measurement))
    assert elastic.blocked_by == f'a trained model in {dense.directory}'
    assert measurement.blocked_by.startswith('a trained model in ') and measurement.alone


def test_a_network_with_three_convolutions_in_a_stage_becomes_elastic_in_depth_too(local_platform):
    for name, phases in (('small', ['width']), ('paper', ['width', 'depth'])):
        elastic = table5_switching.runs(scales.get(name))[2]
        assert [pathlib.Path(location).name for location, _ in elastic._phases] == phases


def test_missing_is_shown_as_missing(local_platform):
    scale = scales.get('smoke')
    table = table5_switching.analyse(table5_switching.read(table5_switching.runs(scale)))
    shown = table5_switching.report(scale, table)
    [line] = [line for line in shown.splitlines() if line.startswith('| DNNShifter, torch |')]
    assert line.count('missing') == 8 and '30.4 to 66.1' in line and 'nan' not in shown
    table5_switching.figure(scale, table)


# ---- a whole run

def test_all_methods_are_measured_and_shown_beside_the_paper(smoke):
    shown = text(smoke)
    assert 'missing' not in shown.split('`missing`: not run yet, or failed.')[1] and 'cifar_resnet' not in shown
    lines = {line.split(' | ')[0].lstrip('| '): line for line in shown.splitlines() if line.startswith('|')}
    for label, paper in (('Model ensemble', ('115.8', '49')), ('Dynamic-OFA', ('56.2', '512')),
                         ('DNNShifter, torch', ('30.4 to 66.1', '43'))):
        assert all(f'| {value} |' in lines[label] for value in paper)
    assert (smoke / 'results' / 'smoke' / 'table5_switching.png').stat().st_size > 10_000
    found = results(smoke)
    assert list(found.index) == ['ensemble', 'dynamic_ofa', *OURS]
    assert (found.overhead_ms_mean > 0).all() and (found.first_answer_ms_mean >= found.overhead_ms_mean).all()


def test_memory_is_that_of_what_is_resident(smoke, tasks):
    found, measurement = results(smoke), tasks[3]
    package = files.load(pathlib.Path(measurement.directory) / 'portfolio.dnns')
    assert [variant.name for variant in package.variants] == ['16x', '4x']  # the smaller one first
    dense = [sum(tensor.size * 4 for tensor in variant.tensors.values()) for variant in package.variants]
    assert found.memory_peak_bytes_mean['ensemble'] == sum(dense)
    for method in OURS:
        row = found.loc[method]
        assert len(package.content) < row.memory_low_bytes_mean <= row.memory_high_bytes_mean
        assert row.memory_high_bytes_mean <= row.memory_peak_bytes_mean
    assert found.memory_low_bytes_mean['torch_ahead'] > found.memory_low_bytes_mean['torch']
    assert found.memory_low_bytes_mean['dynamic_ofa'] > size_bytes(tasks[2].network())


def test_the_accuracy_of_a_method_is_that_of_its_models(smoke, tasks):
    found = results(smoke)
    logged = [model.on_test_set('accuracy') for model in tasks[3].variants]
    for method in OURS:
        row = found.loc[method]
        # Conversion is exact but for rounding.
        assert (row.accuracy_low_mean, row.accuracy_high_mean) == pytest.approx((min(logged), max(logged)), abs=0.01)


def test_the_super_network_is_an_ordinary_model(tasks):
    dense, elastic = tasks[1:3]
    network = elastic.network()
    assert isinstance(network, Model)
    assert (pathlib.Path(elastic.directory) / 'width' / 'logger').read_text().startswith('test_loss,0,')
    # It began as the dense network, its channels sorted: the same answers.
    first = (pathlib.Path(elastic.directory) / 'width' / 'logger').read_text().splitlines()[1]
    assert first == f'test_accuracy,0,{dense.models[0].on_test_set("accuracy")}'


def test_a_second_call_does_nothing_and_other_settings_are_measured_again(smoke, tasks):
    before = text(smoke)
    outcome = here(smoke)
    assert outcome.status == 0 and '0 of 4 runs to do' in outcome.out and text(smoke) == before
    path = pathlib.Path(tasks[3]._path)
    stored = json.loads(path.read_text())
    assert tasks[3].is_done
    try:
        path.write_text(json.dumps(stored | {'settings': stored['settings'] | {'num_rounds': 7}}))
        assert not tasks[3].is_done
    finally:
        path.write_text(json.dumps(stored))


def test_the_depth_shrinks_after_the_width(local_platform):
    """A VGG-16 of 2 to 16 channels, whose dense network is not trained."""
    scale = scales.get('smoke')
    vgg = dataclasses.replace(scale.networks[0], lottery=copy.deepcopy(scale.networks[0].lottery))
    vgg.lottery.model_hparams.model_name = 'cifar_narrowvgg_16_2'
    dense, elastic = table5_switching.runs(dataclasses.replace(scale, networks=(vgg,)))[1:3]
    [trained] = dense.models
    models_registry.get(vgg.training.model_hparams).save(trained.location, trained.end_step)
    (pathlib.Path(trained.location) / 'logger').write_text('')
    assert not elastic.is_done and elastic.blocked_by is None
    elastic.work()
    assert elastic.is_done
    width, depth = (pathlib.Path(elastic.directory) / name for name in ('width', 'depth'))
    states = [torch.load(folder / name, weights_only=True) for folder, name in (
        (width, 'model_ep0_it0.pth'), (width, 'model_ep1_it0.pth'), (depth, 'model_ep0_it0.pth'),
        (depth, 'model_ep1_it0.pth'))]
    begin, middle, again, end = (state['layers.0.conv.weight'] for state in states)
    assert torch.equal(middle, again) and not torch.equal(begin, middle) and not torch.equal(again, end)
    assert torch.equal(elastic.network().layers[0].conv.weight, end)


class Killed(Exception):
    pass


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(smoke, tmp_path, monkeypatch):
    """Killed in the second of three epochs, beside one that was not."""
    copies = [tmp_path / name for name in ('whole', 'killed')]
    ends = []
    for root in copies:
        shutil.copytree(smoke / 'root', root)
        with make_platform(root=root).in_force():
            scale = scales.get('smoke')
            shrinking = scale.switching.shrinking | {'training_steps': '3ep'}
            settings = dataclasses.replace(scale.switching, shrinking=shrinking)
            elastic = table5_switching.runs(dataclasses.replace(scale, switching=settings))[2]
            assert executor.state(elastic) == 'missing'
            if root.name == 'killed':
                with monkeypatch.context() as patch, pytest.raises(Killed):
                    kill_in_iteration(8, patch)
                    elastic.work()
                assert not elastic.is_done
            elastic.work()
            assert elastic.is_done
            ends.append(elastic.network().state_dict())
    whole, killed = ends
    assert all(torch.equal(whole[name], killed[name]) for name in whole)


def kill_in_iteration(number, monkeypatch):
    """5 iterations are an epoch."""
    real, count = train.Stepper.step, iter(range(1, 100))

    def step(self, *batch):
        if next(count) == number:
            raise Killed
        return real(self, *batch)

    monkeypatch.setattr(train.Stepper, 'step', step)


def test_levels_are_chosen_by_latency_and_accuracy(smoke, tasks):
    network, settings = tasks[2].network(), scales.get('smoke').switching
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.randn(32, 3, 32, 32, generator=generator), torch.arange(32) % 10) for _ in range(2)]
    torch.manual_seed(0)
    levels = table5_switching.choose_levels(network, batches, settings)
    assert 1 <= len(levels) <= settings.num_levels
    for faster, better in zip(levels, levels[1:]):
        assert faster.latency_ms <= better.latency_ms and faster.accuracy < better.accuracy
    ofa = dynamic_ofa.DynamicOFA(network, levels)
    for index, level in enumerate(levels):
        assert table5_switching._accuracy(ofa.switch(index), batches) == pytest.approx(level.accuracy)
