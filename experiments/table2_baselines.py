"""Table 2: the dense baselines: parameters, size, accuracy, epochs, hyperparameters.

    python -m experiments.table2_baselines --scale=small
"""

from __future__ import annotations

import functools

import pandas as pd
from torch import nn

from dnnshifter_ext.fuse import fuse_conv_bn
from dnnshifter_ext.graph import capture
from experiments import command, tables
from experiments import runs as declared
from experiments.runs import Run
from experiments.scales import Network, Scale
from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry as models_registry
from open_lth.models.base import Model

TITLE = 'Table 2: dense baselines'
# The paper's networks, counted in the authors' code. A ResNet-50 with its batch norms fused appears in no publication.
EXACT_COUNTS = {
    'cifar_vgg_16': {
        'parameters': 14_728_266, 'prunable': 14_715_584, 'convolution weights': 14_710_464, 'linear weights': 5_120,
        'biases': 4_234, 'batch norm': 8_448, 'parameters, batch norms fused': 14_719_818},
    'tinyimagenet_resnet_50': {
        'parameters': 25_557_032, 'prunable': 25_502_912, 'convolution weights': 23_454_912,
        'linear weights': 2_048_000, 'biases': 1_000, 'batch norm': 53_120}}

read = declared.read


def runs(scale: Scale) -> tuple[Run, ...]:
    return tuple(declared.dense(scale, network, replicate)
                 for replicate in scale.replicates for network in scale.networks)


def analyse(results: pd.DataFrame) -> pd.DataFrame:
    """One row per network: accuracies with spread and n."""
    return tables.spread(results, ['network'], ['accuracy', 'top5_accuracy'])


def report(scale: Scale, table: pd.DataFrame) -> str:
    """Raises ValueError if a network of the paper has other counts than the paper's."""
    columns, rows = ['network', *(column for column in _ours(scale.networks[0], None))], []
    for network in scale.networks:
        ours = _ours(network, tables.find(table, network=network.name))
        rows += [[network.title, *ours.values()], [f'*paper: {network.paper_title}*', *_theirs(network).values()]]
    return '\n\n'.join([
        tables.markdown(columns, rows),
        'The recipe is stochastic gradient descent; `lr` is multiplied by `gamma` after each of `drops`. The authors\' '
        'scripts warm ResNet-50 up over 5 epochs, which the paper does not print; its 1000 outputs for 200 classes are '
        'theirs, too. MiB: 4 bytes a parameter.',
        '## The paper\'s networks, counted', _count_table()])


def count(model: Model) -> dict[str, int]:
    """What the parameters of a model belong to."""
    modules = list(model.modules())

    def num(kinds, *names: str) -> int:
        return sum(parameter.numel() for module in modules if isinstance(module, kinds)
                   for name, parameter in module.named_parameters(recurse=False) if name in names)

    convolutions, linear = num(nn.Conv2d, 'weight'), num(nn.Linear, 'weight')
    state = model.state_dict()
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'prunable': sum(state[name].numel() for name in model.prunable_layer_names),
        'convolution weights': convolutions,
        'linear weights': linear,
        'biases': num((nn.Conv2d, nn.Linear), 'bias'),
        'batch norm': num(nn.BatchNorm2d, 'weight', 'bias'),
        'parameters, batch norms fused': sum(
            parameter.numel() for parameter in fuse_conv_bn(capture(model.eval())).parameters()),
    }


@functools.cache
def build(model_name: str) -> Model:
    return models_registry.get(ModelHparams(model_name, 'kaiming_normal', 'uniform'))


def _ours(network: Network, row: pd.Series | None) -> dict[str, str]:
    desc = network.training
    training, num_params = desc.training_hparams, count(build(desc.model_hparams.model_name))['parameters']
    return {
        'parameters': f'{num_params:,}',
        'MiB': f'{4 * num_params / 2**20:.3g}',
        'top-1 (%)': tables.cell(row, 'accuracy', factor=100),
        'training': training.training_steps,
        'batch': str(desc.dataset_hparams.batch_size),
        'lr': f'{training.lr:g}',
        'drops': training.milestone_steps,
        'gamma': f'{training.gamma:g}',
        'momentum': f'{training.momentum:g}',
        'weight decay': f'{training.weight_decay:g}',
        'warm-up': training.warmup_steps or 'none',
        'part of the training set': f'{100 * (desc.dataset_hparams.subsample_fraction or 1):g} %',
    }


def _theirs(network: Network) -> dict[str, str]:
    row = tables.paper()['tables']['table2']['rows'][network.paper]
    return {
        'parameters': f'{row["params_m"]} M',
        'MiB': f'{row["size_mb"]}',
        'top-1 (%)': f'{row["top1_pct"]:.2f} ± {row["top1_std"]:.2f} (3 or more)',
        'training': f'{row["epochs"]}ep',
        'batch': f'{row["batch_size"]}',
        'lr': f'{row["lr"]:g}',
        'drops': ','.join(f'{epoch}ep' for epoch in row['milestones']),
        'gamma': f'{row["gamma"]:g}',
        'momentum': f'{row["momentum"]:g}',
        'weight decay': f'{row["weight_decay"]:g}',
        'warm-up': '',
        'part of the training set': '100 %',
    }


def _count_table() -> str:
    counts = {name: count(build(name)) for name in EXACT_COUNTS}
    for name, expected in EXACT_COUNTS.items():
        wrong = {what: counts[name][what] for what, number in expected.items() if counts[name][what] != number}
        if wrong:
            raise ValueError(f'{name} is not the network of the paper: it has {wrong}, not '
                             f'{ {what: expected[what] for what in wrong} }')
    rows = [[name, *(f'{number:,}' for number in numbers.values())] for name, numbers in counts.items()]
    return (f'{tables.markdown(["network", *counts["cifar_vgg_16"]], rows)}\n\n'
            'Each was compared with the count in the authors\' code when this table was made (the fused ResNet-50 '
            'excepted, which is published nowhere).')


if __name__ == '__main__':
    command.main('table2_baselines')
