"""Trains each level's mask from new initial weights."""

from open_lth.lottery.branch import base
from open_lth.models import registry as models_registry
from open_lth.pruning.pruned_model import PrunedModel


class Branch(base.Branch):
    def branch_function(self, start_at_step_zero: bool = False):
        self.require_mask()
        model = models_registry.get(self.lottery_desc.model_hparams, self.lottery_desc.train_outputs)
        mask = self.load_mask(model)
        pruned_model = PrunedModel(model, mask)
        mask.save(self.branch_root)
        self.train(pruned_model, self.lottery_desc.str_to_step('0it') if start_at_step_zero
                   else self.lottery_desc.train_start_step)

    @staticmethod
    def description():
        return 'Randomly reinitialize the model.'

    @staticmethod
    def name():
        return 'randomly_reinitialize'
