"""Scores as pruning strategies of the command `lottery`: prune by score, rewind, train, repeat.

Magnitude is the engine's sparse_global. The others are those that make sense on trained weights: GraSP and ProsPr
predict a training from its start, NTK-SAP draws the weights anew.
"""

from __future__ import annotations

import torch

from dnnshifter_ext.methods.unstructured import LOTTERY_STRATEGIES as STRATEGIES
from dnnshifter_ext.methods.unstructured.job import Job
from dnnshifter_ext.methods.unstructured.schedule import num_kept
from open_lth.foundations.errors import UserError
from open_lth.foundations.rng import derive_seed
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import registry as models_registry
from open_lth.models.base import Model
from open_lth.platforms.platform import get_platform
from open_lth.pruning import base, sparse_global
from open_lth.pruning.mask import Mask

HELP = ('Values of --pruning_strategy: sparse_global prunes the smallest weights, as OpenLTH does; random, snip (least '
        'effect on the loss of a mini-batch) and synflow (100 rounds a level) prune exactly --pruning_fraction of what '
        'remains.')


class Strategy(base.Strategy):
    """Its flags are those of sparse_global. The runner, which knows the data, calls `make_mask` instead of `prune`."""

    @staticmethod
    def get_pruning_hparams() -> type:
        return sparse_global.PruningHparams

    @staticmethod
    def prune(pruning_hparams: sparse_global.PruningHparams, trained_model: Model, current_mask: Mask | None = None):
        raise UserError(f'--pruning_strategy={pruning_hparams.pruning_strategy} looks at the training data: '
                        'it works with `main.py lottery` only')


def validate(desc: LotteryDesc) -> None:
    """Before any training: UserError for a score's strategy that would prune a layer the model does not have."""
    job = _job(desc)
    if job is not None:
        with torch.device('meta'):
            names = models_registry.get(desc.model_hparams).prunable_layer_names
        unknown = [name for name in job.layers_to_ignore if name not in names]
        if unknown:
            raise UserError(f'--pruning_layers_to_ignore: there is no layer {", ".join(unknown)}. '
                            f'There are: {", ".join(names)}')


def make_mask(desc: LotteryDesc, replicate: int, level: int, model: Model, mask: Mask, verbose: bool) -> Mask:
    """The mask of a level, from the trained model and the mask of the level before; writes scoring.json."""
    fraction = desc.pruning_hparams.pruning_fraction
    return _job(desc).run(
        model, num_kept(mask.num_kept, fraction), desc.run_path(replicate, level), desc.dataset_hparams,
        desc.model_hparams, derive_seed(replicate, level), mask, verbose and get_platform().is_primary_process)


def _job(desc: LotteryDesc) -> Job | None:
    hparams = desc.pruning_hparams
    if hparams.pruning_strategy not in STRATEGIES:
        return None
    return Job.from_flags(hparams.pruning_strategy, layers_to_ignore=hparams.pruning_layers_to_ignore)
