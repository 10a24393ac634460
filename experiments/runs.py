"""A declared run: the engine command that makes it, the run directory it ends in, and the trained models found there.

A run is an ordinary run of the engine, named after its hyperparameters: experiments share it, it can be made by hand
with the same command, and whoever has the run directory has its results. All paths are below the platform in force.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
import math
import pathlib
import runpy
import sys
from unittest import mock

import pandas as pd

from dnnshifter_ext import paths as extension_paths
from dnnshifter_ext.install import install
from experiments import methods, stored
from experiments.scales import Network, Scale
from open_lth.foundations import paths
from open_lth.foundations.hparams import Hparams
from open_lth.foundations.step import Step
from open_lth.platforms.platform import get_platform
from open_lth.training.branch.registry import registered_branches
from open_lth.training.metric_logger import MetricLogger
from open_lth.training.train import is_finished

PROGRAM = pathlib.Path(__file__).resolve().parent.parent / 'main.py'


@dataclass(frozen=True)
class TrainedModel:
    """A model that a run leaves: at the last step of its folder. ratio: the compression ratio asked for; 1 is dense."""

    network: Network
    method: str
    ratio: int
    replicate: int
    location: str

    @property
    def end_step(self) -> Step:
        return self.network.training.end_step

    @property
    def is_trained(self) -> bool:
        return is_finished(self.location, self.end_step)

    def on_test_set(self, metric: str) -> float:
        """'accuracy' or 'top5accuracy' at the end of the training, as a fraction; NaN where it is not in the log."""
        found = MetricLogger.create_from_file(self.location).get_data(f'test_{metric}', self.end_step)
        return math.nan if found is None else found


@dataclass(frozen=True)
class Run:
    """command: what follows `main.py`; directory: where it leaves its files; after: the run that it starts from."""

    title: str
    command: tuple[str, ...]
    directory: str
    models: tuple[TrainedModel, ...]
    after: Run | None = None
    alone = False

    @property
    def is_done(self) -> bool:
        return all(model.is_trained for model in self.models)

    @property
    def blocked_by(self) -> str | None:
        """The title of what has to be there first, if it is not."""
        return None if self.after is None or self.after.is_done else self.after.title

    def work(self) -> None:
        """Runs the command in this process, which has to be one of its own. Raises SystemExit."""
        with mock.patch.object(sys, 'argv', [str(PROGRAM), *self.command, *flags(get_platform())]):
            runpy.run_path(str(PROGRAM), run_name='__main__')


def dense(scale: Scale, network: Network, replicate: int) -> Run:
    desc = network.training
    location = desc.run_path(replicate)
    return Run(
        f'{network.name} dense, replicate {replicate}', ('train', *_training_flags(network, replicate)), location,
        (TrainedModel(network, methods.DENSE, 1, replicate, location),))


def at_init(scale: Scale, network: Network, method: str, ratio: int, replicate: int) -> Run:
    """A method's mask at one ratio, from the initial weights of the dense run, trained."""
    arguments = dict(methods.AT_INIT[method].arguments) | dict(scale.arguments.get(method, {}))
    arguments['prune_fraction'] = repr(1 - 1 / ratio)
    install()
    branch = registered_branches['oneshot']
    kinds = {field.name: field.type for field in fields(branch.BranchHparams)}
    hparams = branch.BranchHparams(**{name: kinds[name](value) for name, value in arguments.items()})
    location = branch.BranchDesc(network.training, hparams).run_path(replicate)
    return Run(
        f'{network.name} {methods.LABELS[method]} {ratio}x, replicate {replicate}',
        ('branch', 'train', 'oneshot', *_training_flags(network, replicate), *flags(hparams)), location,
        (TrainedModel(network, method, ratio, replicate, location),), after=dense(scale, network, replicate))


def imp(scale: Scale, network: Network, replicate: int) -> Run:
    """Iterative magnitude pruning; its models are those of the levels whose compression ratios are asked for."""
    desc = network.lottery
    command = ('lottery', *_training_flags(network, replicate), *flags(desc.pruning_hparams),
               f'--rewinding_steps={desc.pretrain_training_hparams.training_steps}', f'--levels={scale.num_levels}',
               '--no_dnnshifter')
    return Run(
        f'{network.name} {methods.LABELS[methods.IMP]} {scale.num_levels} levels, replicate {replicate}', command,
        extension_paths.run_directory(desc, replicate),
        tuple(TrainedModel(network, methods.IMP, ratio, replicate, desc.run_path(replicate, level))
              for ratio, level in scale.levels.items()))


def comparison(scale: Scale) -> tuple[Run, ...]:
    """The dense baselines and all methods at all ratios; replicate by replicate, so that the first is soon whole."""
    return tuple(run for replicate in scale.replicates for network in scale.networks for run in (
        imp(scale, network, replicate), dense(scale, network, replicate),
        *(at_init(scale, network, method, ratio, replicate) for method in methods.AT_INIT for ratio in scale.ratios)))


_COLUMNS = ('network', 'method', 'ratio', 'replicate', 'accuracy', 'top5_accuracy', 'num_prunable', 'num_kept',
            'scoring_time_s', 'scoring_memory_bytes', 'num_empty_layers')


def read(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per model of the runs, with these columns; NaN for what is not known, as of a model that is not trained.

    accuracy, top5_accuracy (of more than 10 outputs): on the test set, at the end, as fractions. num_prunable,
    num_kept: weights in the mask. scoring_time_s, scoring_memory_bytes, num_empty_layers: of methods at initialisation.
    """
    rows = [{'network': model.network.name, 'method': model.method, 'ratio': model.ratio, 'replicate': model.replicate}
            | (_outcome(model) if model.is_trained else {}) for run in runs for model in run.models]
    measured = dict.fromkeys(_COLUMNS[4:], float)
    return pd.DataFrame(rows, columns=_COLUMNS).astype(measured)


def _outcome(model: TrainedModel) -> dict:
    outcome = {'accuracy': model.on_test_set('accuracy'), 'top5_accuracy': model.on_test_set('top5accuracy')}
    if model.method != methods.DENSE:
        sparsity = stored.read(paths.sparsity_report(model.location))
        outcome |= {'num_prunable': sparsity['total'], 'num_kept': sparsity['unpruned']}
    if model.method in methods.AT_INIT:
        scoring = stored.read(extension_paths.scoring(model.location))
        outcome |= {'scoring_time_s': scoring['scoring_time_s'], 'scoring_memory_bytes': scoring['peak_memory_bytes'],
                    'num_empty_layers': len(scoring['empty_layers'])}
    return outcome


def flags(hparams: Hparams) -> list[str]:
    """The flags that give a command these hyperparameters; those with their default value are left out."""
    found = []
    for field in fields(hparams):
        value = getattr(hparams, field.name)
        if field.name.startswith('_') or value is None or value == field.default:
            continue
        found.append(f'--{field.name}' if value is True else f'--{field.name}={value}')
    return found


def _training_flags(network: Network, replicate: int) -> list[str]:
    desc = network.training
    return [f'--replicate={replicate}', '--evaluate_only_at_end', *flags(desc.model_hparams),
            *flags(desc.dataset_hparams), *flags(desc.training_hparams)]
