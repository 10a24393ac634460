"""Trains each level with a random mask of the same sparsity."""

import torch

from open_lth.foundations.errors import UserError
from open_lth.lottery.branch import base
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel
from open_lth.utils.tensor_utils import shuffle_state_dict, shuffle_tensor, unvectorize, vectorize


class Branch(base.Branch):
    def branch_function(self, seed: int, strategy: str = 'layerwise', start_at: str = 'rewind',
                        layers_to_ignore: str = ''):
        starts = {'init': (self.lottery_desc.str_to_step('0it'),) * 2,
                  'end': (self.lottery_desc.str_to_step('0it'), self.lottery_desc.train_end_step),
                  'rewind': (self.lottery_desc.train_start_step,) * 2}
        if start_at not in starts:
            raise UserError(f'no such --start_at: {start_at}. Known: {", ".join(starts)}')
        start_step, state_step = starts[start_at]
        self.require_mask()
        # OpenLTH compatibility: the level's own state already has the level's mask applied, so weights that the random
        # mask keeps and the level's prunes start from zero.
        model = self.load_level_model(state_step)
        mask = self.load_mask(model)

        random_mask = Mask(_randomize(mask, strategy, seed))
        for name in layers_to_ignore.split(','):
            if name and name not in mask:
                raise UserError(f'--layers_to_ignore: there is no prunable layer {name}')
            if name:
                random_mask[name] = torch.ones_like(mask[name])
        random_mask.save(self.branch_root)
        self.train(PrunedModel(model, random_mask), start_step)

    @staticmethod
    def description():
        return 'Randomly prune the model.'

    @staticmethod
    def name():
        return 'randomly_prune'


def _randomize(mask, strategy, seed):
    """'layerwise' keeps each layer's sparsity, 'global' only the total, 'identity' everything."""
    if strategy == 'layerwise':
        return shuffle_state_dict(mask, seed=seed)
    if strategy == 'global':
        return unvectorize(shuffle_tensor(vectorize(mask), seed=seed), mask)
    if strategy == 'identity':
        return mask
    raise UserError(f"no such --strategy: {strategy}. Known: layerwise, global, identity "
                    "(OpenLTH's 'even' never worked)")
