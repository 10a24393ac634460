"""The methods by name: score, rounds, and the examples that each looks at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
import inspect
import math

import torch

from dnnshifter_ext.methods.unstructured import grasp, ntk_sap, prospr, random_layerwise, synflow
from dnnshifter_ext.methods.unstructured.data import Batches, mini_batches, per_class
from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import DatasetHparams
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores import magnitude, random, snip
from open_lth.pruning.scores import registry as engine_scores

Options = Mapping[str, int | float | bool]


@dataclass(frozen=True)
class Method:
    """load(dataset_hparams, seed, options) -> the batches of the setting. num_rounds: as published; 1 is one-shot."""

    score: Callable[..., Mapping[str, torch.Tensor]]
    load: Callable[[DatasetHparams, int, Options], Batches] = lambda data, seed, options: []
    num_rounds: int = 1

    @property
    def options(self) -> dict[str, int | float | bool]:
        """The score's keyword options with their defaults."""
        parameters = inspect.signature(self.score).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def of_engine(score: Callable) -> Callable[[Model, Mask, Setting], Mapping[str, torch.Tensor]]:
    """A score of the engine behind the signature of this package."""
    return lambda model, mask, setting: score(model, setting.batches, seed=setting.seed)


METHODS = {
    'random': Method(of_engine(random.score)),
    'random_layerwise': Method(random_layerwise.score),
    'magnitude': Method(of_engine(magnitude.score)),
    'snip': Method(of_engine(snip.score), lambda data, seed, options: mini_batches(data, 1, seed)),
    'grasp': Method(grasp.score, lambda data, seed, options: per_class(data, 10, seed)),
    'synflow': Method(synflow.score, lambda data, seed, options: mini_batches(data, 1, seed), num_rounds=100),
    'ntk_sap': Method(ntk_sap.score, lambda data, seed, options: per_class(data, 10, seed, batch_size=256),
                      num_rounds=20),
    'prospr': Method(prospr.score,
                     lambda data, seed, options: mini_batches(data, options['num_steps'] + 1, seed)),
}


def find(strategy: str) -> Method:
    """The method of that name, or the engine's score such as snip10; UserError for any other name."""
    if strategy in METHODS:
        return METHODS[strategy]
    if not is_of_engine(strategy):
        raise UserError(f'no such --strategy: {strategy}. Known: {known()}')
    named = engine_scores.get(strategy)
    return Method(of_engine(named.function),
                  lambda data, seed, options: per_class(data, named.examples_per_class, seed))


def known() -> str:
    """All names, in words."""
    counted = [f'{name}N' for name, num in engine_scores.examples_per_class.items() if num is engine_scores.N_IN_NAME]
    return f'{", ".join([*METHODS, *counted])} (N = examples of each class)'


def is_of_engine(strategy: str) -> bool:
    """Whether `branch train oneshot` of an engine without this package knows the name."""
    try:
        engine_scores.get(strategy)
    except UserError:
        return False
    return True


def parse_options(method: Method, text: str | None) -> dict[str, int | float | bool]:
    """All options of a method; 'num_steps=1,first_order=1' replaces two defaults. Raises UserError."""
    options = method.options
    for part in (text or '').split(','):
        if not part.strip():
            continue
        name, _, value = (piece.strip() for piece in part.partition('='))
        if name not in options:
            raise UserError(f'--strategy_options: there is no {name}. Known: {", ".join(options) or "none"}')
        kind = type(options[name])
        try:
            options[name] = {'0': False, '1': True}[value] if kind is bool else kind(value)
            valid = 0 <= options[name] < math.inf
        except (ValueError, KeyError):
            valid = False
        if not valid:
            expected = {bool: '0 or 1', int: 'a whole number from 0', float: 'a number from 0'}[kind]
            raise UserError(f"--strategy_options: {name} is {expected}, not '{value}'")
    return options
