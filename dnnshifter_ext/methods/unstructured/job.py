"""The rim that all commands share: from flags to a mask, with the cost of scoring printed and stored beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import functools
import json
import os

import torch
from torch import nn

from dnnshifter_ext import paths
from dnnshifter_ext.methods.unstructured import registry
from dnnshifter_ext.methods.unstructured.cost import Cost, measured
from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.schedule import SCHEDULES
from dnnshifter_ext.methods.unstructured.select import empty_layers
from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.hparams import DatasetHparams, ModelHparams
from open_lth.foundations.rng import preserve_rng_state
from open_lth.models import registry as models_registry
from open_lth.models.base import Model
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask


@dataclass(frozen=True)
class Job:
    """How to prune. options: of the score, all of them."""

    strategy: str
    schedule: str
    num_rounds: int
    options: Mapping[str, int | float | bool]
    layers_to_ignore: tuple[str, ...]
    prune_highest: bool = False

    @classmethod
    def from_flags(
        cls, strategy: str, *, schedule: str | None = None, num_rounds: int = 1, options: str | None = None,
        layers_to_ignore: str | None = None, prune_highest: bool = False,
    ) -> Job:
        """Without a schedule it is the method's own; so is the number of rounds when it is 1. Raises UserError."""
        method = registry.find(strategy)
        if schedule is not None and schedule not in SCHEDULES:
            raise UserError(f'no such --schedule: {schedule}. Known: {", ".join(SCHEDULES)}')
        if schedule == 'one_shot' and num_rounds > 1:
            raise UserError(f'--schedule=one_shot has one round; --prune_iterations={num_rounds} needs another')
        num_rounds = 1 if schedule == 'one_shot' else num_rounds if num_rounds > 1 else method.num_rounds
        return cls(
            strategy=strategy, schedule=schedule or ('exponential' if num_rounds > 1 else 'one_shot'),
            num_rounds=num_rounds, options=registry.parse_options(method, options),
            layers_to_ignore=tuple(name for name in (layers_to_ignore or '').split(',') if name),
            prune_highest=prune_highest)

    def run(
        self, model: Model, num_kept: int, location: str, dataset_hparams: DatasetHparams, model_hparams: ModelHparams,
        seed: int, mask: Mask | None = None, verbose: bool = True,
    ) -> Mask:
        """The mask that leaves num_kept weights. Writes scoring.json into the location, and says what it cost.

        Scores on the platform's device; the model, and the random generators, are left as they were. Raises UserError
        when so many weights cannot stay, or when scores are not numbers.
        """
        method, device = registry.find(self.strategy), get_platform().torch_device
        where_it_was = next(model.parameters()).device
        model.to(device)  # first of all: a GPU has a random state to preserve only once it is in use
        with preserve_rng_state():
            batches = [(inputs.to(device), labels.to(device))
                       for inputs, labels in method.load(dataset_hparams, seed, self.options)]
            setting = Setting(batches, seed, functools.partial(_initialise, model_hparams, device))
            try:
                mask, cost = measured(lambda: prune(
                    model, self._score, setting, num_kept, schedule=self.schedule,
                    num_rounds=self.num_rounds, mask=mask, exempt=self.layers_to_ignore), device)
            except ValueError as error:
                raise UserError(f'--strategy={self.strategy}: {error}') from error
            model.to(where_it_was)
        how = {'strategy': self.strategy, 'schedule': self.schedule, 'num_rounds': self.num_rounds,
               'options': dict(self.options), 'layers_to_ignore': list(self.layers_to_ignore), 'seed': seed}
        record(location, how, mask, cost, verbose)
        return mask

    def _score(self, model: Model, mask: Mask, setting: Setting) -> Mapping[str, torch.Tensor]:
        scores = registry.find(self.strategy).score(model, mask, setting, **self.options)
        return {name: -tensor for name, tensor in scores.items()} if self.prune_highest else scores


def _initialise(model_hparams: ModelHparams, device: torch.device, model: nn.Module) -> None:
    """Draws the model anew as `train` would, on the device that it is on."""
    with device:
        fresh = models_registry.get(model_hparams)
    model.load_state_dict(fresh.state_dict())


def record(location: str, how: Mapping, mask: Mask, cost: Cost, verbose: bool) -> None:
    """Writes scoring.json: how it was pruned, what scoring cost, what is left of each layer; prints the gist of it."""
    empty = empty_layers(mask)
    summary = {
        **how,
        'num_prunable': mask.num_total,
        'num_kept': mask.num_kept,
        'compression_ratio': mask.num_total / max(mask.num_kept, 1),
        'empty_layers': empty,
        'layers': {name: {'num_weights': keep.numel(), 'num_kept': int(keep.count_nonzero())}
                   for name, keep in mask.items()},
        'scoring_time_s': cost.time_s,
        'peak_memory_bytes': cost.peak_memory_bytes,
        'memory_kind': cost.memory_kind,
        'device': cost.device,
        'num_threads': cost.num_threads,
    }
    os.makedirs(location, exist_ok=True)
    with write_atomically(paths.scoring(location)) as file:
        json.dump(summary, file, indent=4)
    if verbose:
        memory = 'unknown' if cost.peak_memory_bytes is None else f'{cost.peak_memory_bytes / 2**20:,.0f} MiB'
        print(f'Scored by {how["strategy"]} in {cost.time_s:.2f} s ({cost.device}, peak memory {memory}): '
              f'{mask.num_kept:,} of {mask.num_total:,} weights stay, {summary["compression_ratio"]:.1f}x')
        if empty:
            print(f'Layer collapse: no weight is left in {", ".join(empty)}', flush=True)
