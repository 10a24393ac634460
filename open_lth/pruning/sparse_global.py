"""Global magnitude pruning: the smallest weights of all layers together go."""

from dataclasses import dataclass

import numpy as np

from open_lth.foundations import hparams
from open_lth.foundations.errors import UserError
from open_lth.pruning import base
from open_lth.pruning.mask import Mask


@dataclass
class PruningHparams(hparams.PruningHparams):
    pruning_fraction: float = 0.2
    pruning_layers_to_ignore: str = None

    # OpenLTH compatibility: no annotations, so these title the help but not the instances; and `_name` is the second
    # positional argument. Use keywords.
    _name = 'Hyperparameters for Sparse Global Pruning'
    _description = 'Hyperparameters that modify the way pruning occurs.'
    _pruning_fraction = 'The fraction of the remaining weights to prune.'
    _pruning_layers_to_ignore = 'Comma-separated names of weights that are not pruned, for example fc.weight.'


class Strategy(base.Strategy):
    @staticmethod
    def get_pruning_hparams():
        return PruningHparams

    @staticmethod
    def prune(pruning_hparams, trained_model, current_mask=None):
        """Prunes `pruning_fraction` of the weights that the current mask keeps.

        OpenLTH compatibility: the fraction is of all prunable weights, ignored ones included; the weight at the
        threshold goes too ('>' below), so without ties one weight more than asked is pruned.
        Raises UserError when the layers not ignored have too few weights left.
        """
        hparams.check_fraction(pruning_hparams, 'pruning_fraction', below_one=True)
        current = (Mask.ones_like(trained_model) if current_mask is None else current_mask).numpy()
        num_remaining = np.sum([np.sum(mask) for mask in current.values()])
        num_to_prune = np.ceil(pruning_hparams.pruning_fraction * num_remaining).astype(int)

        ignored = (pruning_hparams.pruning_layers_to_ignore or '').split(',')
        candidates = set(trained_model.prunable_layer_names) - set(ignored)
        magnitudes = {name: np.abs(tensor.clone().cpu().detach().numpy())
                      for name, tensor in trained_model.state_dict().items() if name in candidates}
        remaining = np.concatenate([np.zeros(0), *(magnitudes[name][current[name] == 1] for name in magnitudes)]) \
            .astype(np.float32)
        if num_to_prune >= len(remaining):
            raise UserError(f'cannot prune {num_to_prune} weights: only {len(remaining)} remain in the layers '
                            'that are not ignored. Prune fewer levels or a smaller --pruning_fraction.')
        threshold = np.partition(remaining, num_to_prune)[num_to_prune]

        pruned = Mask({name: np.where(magnitudes[name] > threshold, current[name], np.zeros_like(magnitudes[name]))
                       for name in magnitudes})
        for name in current:
            if name not in pruned:
                pruned[name] = current[name]
        return pruned
