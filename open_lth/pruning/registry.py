"""Pruning strategies by name."""

import copy

from open_lth.foundations.errors import UserError
from open_lth.foundations.lazy import LazyRegistry

registered_strategies = LazyRegistry(sparse_global='open_lth.pruning.sparse_global:Strategy')


def get(pruning_hparams):
    """A callable (trained_model, current_mask=None) -> Mask, bound to a copy of the hyperparameters."""
    strategy = _strategy(pruning_hparams.pruning_strategy)
    bound = copy.deepcopy(pruning_hparams)
    return lambda trained_model, current_mask=None: strategy.prune(bound, trained_model, current_mask)


def get_pruning_hparams(pruning_strategy):
    """The class of the strategy's hyperparameters."""
    return _strategy(pruning_strategy).get_pruning_hparams()


def _strategy(name):
    if name not in registered_strategies:
        raise UserError(f'no such pruning strategy: {name}. Known: {", ".join(registered_strategies)}')
    return registered_strategies[name]
