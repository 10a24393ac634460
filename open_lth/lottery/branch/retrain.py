"""Trains each level again with other hyperparameters."""

from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.hparams import DatasetHparams, TrainingHparams
from open_lth.foundations.step import Step
from open_lth.lottery.branch import base
from open_lth.pruning.pruned_model import PrunedModel
from open_lth.training import optimizers


class Branch(base.Branch):
    def branch_function(self, retrain_d: DatasetHparams, retrain_t: TrainingHparams,
                        start_at_step_zero: bool = False):
        iterations_per_epoch = datasets_registry.iterations_per_epoch(retrain_d)
        optimizers.validate(retrain_t, iterations_per_epoch)
        model = self.load_level_model(self.lottery_desc.train_start_step)
        mask = self.load_mask(model)
        start = 0 if start_at_step_zero else self.lottery_desc.train_start_step.iteration
        self.train(PrunedModel(model, mask), Step.from_iteration(start, iterations_per_epoch), retrain_d, retrain_t)

    @staticmethod
    def description():
        return 'Retrain the model with different hyperparameters.'

    @staticmethod
    def name():
        return 'retrain'
