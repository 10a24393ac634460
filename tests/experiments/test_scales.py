"""Scales: what they declare, and that the paper's is the paper's."""

import pytest

from experiments import scales, tables
from open_lth.foundations.errors import UserError


@pytest.mark.parametrize('name', scales.NAMES)
def test_every_ratio_has_the_level_that_reaches_it(name):
    scale = scales.get(name)
    for network in scale.networks:
        kept = 1 - network.lottery.pruning_hparams.pruning_fraction
        for ratio, level in scale.levels.items():
            assert kept**-level == pytest.approx(ratio, rel=0.12)  # 0.8^-25 is 265


def test_paper_scale_is_the_recipe_of_table_2():
    for network in scales.get('paper').networks:
        row, desc = tables.paper()['tables']['table2']['rows'][network.paper], network.training
        training = desc.training_hparams
        assert (desc.dataset_hparams.batch_size, training.lr, training.training_steps, training.gamma,
                training.momentum, training.weight_decay, training.nesterov_momentum) == (
            row['batch_size'], row['lr'], f'{row["epochs"]}ep', row['gamma'], row['momentum'], row['weight_decay'], 0)
        assert training.milestone_steps == ','.join(f'{epoch}ep' for epoch in row['milestones'])
        assert network.lottery.pretrain_training_hparams.training_steps == '2000it'
        assert network.lottery.pruning_hparams.pruning_fraction == 0.2


def test_paper_scale_has_the_papers_levels_and_replicates():
    scale = scales.get('paper')
    assert scale.levels == {int(ratio): level
                            for ratio, level in tables.paper()['derived']['imp_level_of_each_ratio'].items()}
    assert scale.num_levels == 25 and scale.num_replicates == 3
    vgg, resnet = (network.lottery for network in scale.networks)
    assert vgg.pruning_hparams.pruning_layers_to_ignore == 'fc.weight'
    assert resnet.pruning_hparams.pruning_layers_to_ignore is None
    assert (vgg.training_hparams.warmup_steps, resnet.training_hparams.warmup_steps) == (None, '5ep')


def test_another_data_set_has_runs_and_results_of_its_own():
    usual, other = scales.get('smoke'), scales.get('smoke', 'fashion_mnist')
    assert (usual.folder, other.folder) == ('smoke', 'smoke_fashion_mnist')
    for network, changed in zip(usual.networks, other.networks, strict=True):
        assert changed.lottery.dataset_hparams.dataset_name == 'fashion_mnist_32'
        assert changed.lottery.pretrain_dataset_hparams.dataset_name == 'fashion_mnist_32'
        assert changed.lottery.hashname != network.lottery.hashname
        assert network.lottery.dataset_hparams.dataset_name == 'digits'


def test_the_scales_own_data_set_changes_nothing():
    assert scales.get('small', 'fashion_mnist') == scales.get('small')


@pytest.mark.parametrize('arguments, expected', [
    (('huge',), 'no such --scale: huge'),
    (('smoke', 'mnist'), 'does not take images of 1x28x28'),
    (('smoke', 'foo'), 'no such dataset: foo'),
    (('smoke', None, 0), '--replicates must be at least 1'),
])
def test_mistakes_are_named(arguments, expected):
    with pytest.raises(UserError, match=expected):
        scales.get(*arguments)
