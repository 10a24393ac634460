import functools
import json
import pathlib
import random

import numpy as np
import pandas as pd
import pytest
import torch

from dnnshifter_ext import export, paths
from dnnshifter_ext import level as levels
from dnnshifter_ext.plan import RemovalPlan
from dnnshifter_ext.profiler import profile_together
from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import DatasetHparams, ModelHparams, TrainingHparams
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import registry as models_registry
from open_lth.pruning.mask import Mask
from open_lth.pruning.sparse_global import PruningHparams
from tests import helpers
from tests.dnnshifter_ext import nets


@pytest.fixture(autouse=True)
def fast(monkeypatch, local_platform):
    quick = functools.partial(profile_together, batch_sizes=(1, 4), budget_s=0)
    monkeypatch.setattr(levels, 'profile_together', quick)


@pytest.fixture
def desc():
    return LotteryDesc(
        ModelHparams('cifar_resnet_8_4', 'kaiming_normal', 'uniform'), DatasetHparams('digits', 100),
        TrainingHparams('sgd', 0.1, '1ep'), PruningHparams(pruning_strategy='sparse_global'))


def save_level(desc, level, density=0.02):
    """A level as training would leave it, but with weights under the mask that are not zero."""
    torch.manual_seed(level)
    model = nets.sparsify(models_registry.get(desc.model_hparams), level, density=1, share_of_dead_filters=0)
    generator = torch.Generator().manual_seed(level)
    location = desc.run_path(1, level)
    model.save(location, desc.train_end_step)
    Mask({name: (torch.rand(model.state_dict()[name].shape, generator=generator) < density).int()
          for name in model.prunable_layer_names}).save(location)
    return model


def masked(desc, level):
    location = desc.run_path(1, level)
    model = models_registry.load(location, desc.train_end_step, desc.model_hparams)
    for name, mask in Mask.load(location).items():
        model.state_dict()[name].mul_(mask)
    return model.eval()


def files(desc):
    return {path: path.stat().st_mtime_ns for path in pathlib.Path(paths.run_directory(desc, 1)).rglob('*')
            if path.is_file()}


def test_a_level_becomes_three_files(desc):
    save_level(desc, 3)
    before = files(desc)
    levels.convert_level(desc, 1, 3)
    directory = pathlib.Path(desc.run_path(1, 3)).parent / 'dnnshifter'
    assert sorted(path.name for path in directory.iterdir()) == ['model.pth', 'plan.json', 'profile.json']
    assert {path: time for path, time in files(desc).items() if path.parent != directory} == before

    sparse = masked(desc, 3)
    pruned = export.load(directory / 'model.pth')
    x = nets.images(32, num=16)
    with torch.no_grad():
        assert torch.allclose(pruned(x), sparse(x), atol=1e-5)
    assert nets.num_params(pruned) < nets.num_params(sparse)

    plan = RemovalPlan.from_dict(json.loads((directory / 'plan.json').read_text()))
    assert plan.num_removed > 0
    summary = json.loads((directory / 'profile.json').read_text())
    assert summary['level'] == 3 and summary['num_channels_removed'] == plan.num_removed
    assert summary['pruned']['num_params'] == nets.num_params(pruned) < summary['fused']['num_params']
    assert summary['pruned']['num_flops'] < summary['fused']['num_flops'] == summary['unfused']['num_flops']
    assert summary['pruned']['accuracy'] == summary['unfused']['accuracy']
    assert (summary['pruned']['changed_predictions'], summary['pruned']['num_examples']) == (0, 360)
    for latency in summary['pruned']['latencies']:
        assert set(latency['speedup_over']) == {'unfused', 'fused'}
    assert summary['conversion_time_ms'] == summary['analysis_time_ms'] + summary['rebuilding_time_ms'] > 0
    assert summary['comparison']['max_abs_difference'] <= 1e-5 * summary['comparison']['output_range']
    mask = Mask.load(desc.run_path(1, 3))
    total, kept = sum(m.numel() for m in mask.values()), sum(int(m.sum()) for m in mask.values())
    assert summary['compression_ratio'] == total / kept


def test_accuracy_is_that_of_the_test_set(desc):
    from open_lth.datasets import registry
    save_level(desc, 0)
    levels.convert_level(desc, 1, 0)
    sparse = masked(desc, 0)
    loader = registry.get(desc.dataset_hparams, train=False)
    hits = [(sparse(x).argmax(1) == y).sum().item() for x, y in loader]
    summary = json.loads(pathlib.Path(paths.profile(paths.level_directory(desc, 1, 0))).read_text())
    assert summary['unfused']['accuracy'] == sum(hits) / 360


def test_the_sparse_model_is_profiled_as_it_was_trained_and_fused(desc):
    save_level(desc, 0)
    levels.convert_level(desc, 1, 0)
    summary = json.loads(pathlib.Path(paths.profile(paths.level_directory(desc, 1, 0))).read_text())
    sparse = masked(desc, 0)
    num_norms = sum(module.num_features for module in sparse.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert summary['unfused']['num_params'] == nets.num_params(sparse)
    assert summary['unfused']['num_nonzero_params'] == sum(int(p.count_nonzero()) for p in sparse.parameters())
    # Of a scale and a shift per channel the bias of the convolution remains.
    assert summary['fused']['num_params'] == nets.num_params(sparse) - num_norms


def test_random_generators_are_left_as_they_were(desc):
    save_level(desc, 0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    levels.convert_level(desc, 1, 0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all() and before[2] == random.getstate()


def test_a_finished_level_is_skipped_and_a_half_finished_one_is_redone(desc, monkeypatch):
    save_level(desc, 0)
    levels.convert_level(desc, 1, 0)
    directory = pathlib.Path(paths.level_directory(desc, 1, 0))
    before = files(desc)
    with monkeypatch.context() as patch:
        patch.setattr(levels, 'convert', None)
        levels.convert_level(desc, 1, 0)
    assert files(desc) == before

    (directory / 'profile.json').unlink()
    (directory / 'model.pth').write_bytes(b'half')
    levels.convert_level(desc, 1, 0)
    export.load(directory / 'model.pth')
    assert levels.is_converted(desc, 1, 0)


@pytest.mark.parametrize('name', ['model.pth', 'plan.json', 'profile.json'])
def test_a_write_that_fails_leaves_the_level_undone_and_no_half_file(desc, monkeypatch, name):
    save_level(desc, 0)
    directory = pathlib.Path(paths.level_directory(desc, 1, 0))
    with monkeypatch.context() as patch:
        function = paths.model if name == 'model.pth' else getattr(paths, name.removesuffix('.json'))
        patch.setattr(paths, function.__name__, lambda folder: '/nowhere/at/all')
        with pytest.raises(FileNotFoundError):
            levels.convert_level(desc, 1, 0)
    assert not levels.is_converted(desc, 1, 0)
    assert all(not path.name.startswith('.') for path in directory.iterdir())
    levels.convert_level(desc, 1, 0)
    assert levels.is_converted(desc, 1, 0)


def test_an_untrained_level_is_one_clear_line(desc):
    with pytest.raises(UserError, match='level 2 is not trained: .*level_2/main has no mask or no model'):
        levels.convert_level(desc, 1, 2)
    assert not pathlib.Path(paths.run_directory(desc, 1)).exists()


def test_a_diverged_level_is_named(desc):
    model = save_level(desc, 0)
    model.fc.bias.data[0] = float('nan')
    model.save(desc.run_path(1, 0), desc.train_end_step)
    with pytest.raises(UserError, match="level 0 in .*level_0/main cannot be converted: .*'fc.bias' has NaN"):
        levels.convert_level(desc, 1, 0)
    assert not levels.is_converted(desc, 1, 0)


def test_summary_of_the_levels_that_exist(desc):
    for level, density in ((0, 1.0), (2, 0.02)):
        save_level(desc, level, density)
        levels.convert_level(desc, 1, level)
    text = levels.report(desc, 1, range(5))
    directory = pathlib.Path(desc.run_path(1, 0)).parent.parent
    frame = pd.read_csv(directory / 'portfolio.csv')
    assert frame['level'].tolist() == [0, 2]
    assert frame['compression_ratio'][0] == 1 and frame['compression_ratio'][1] == pytest.approx(50, rel=0.3)
    assert (frame['params_stored'] < frame['params_stored_sparse']).tolist() == [False, True]
    assert (directory / 'portfolio.png').read_bytes().startswith(b'\x89PNG')
    assert str(directory / 'portfolio.csv') in text and str(directory / 'portfolio.png') in text
    assert [line.split()[0] for line in text.splitlines()[4:6]] == ['0', '2']
    assert not [path for path in helpers.list_files(directory) if path.endswith('.tmp')]


def test_summary_of_nothing_and_of_a_damaged_level(desc):
    with pytest.raises(UserError, match='none of the levels in .* has been converted'):
        levels.summarise(desc, 1, range(3))
    save_level(desc, 0)
    levels.convert_level(desc, 1, 0)
    path = pathlib.Path(paths.profile(paths.level_directory(desc, 1, 0)))
    complete = path.read_text()
    assert '"unfused": {' in complete and '"speedup_over": {' in complete
    for text in ('{', '{}', '[]', complete.replace('"accuracy"', '"accurate"'),
                 complete.replace('"unfused": {', '"sparse": {'),  # as an older version wrote it
                 complete.replace('"speedup_over": {}', '"speedup_over": [1]')):
        path.write_text(text)
        with pytest.raises(UserError, match='profile.json is damaged .*delete it to make it again') as caught:
            levels.summarise(desc, 1, range(1))
        assert '\n' not in str(caught.value)
