"""What a pruning strategy offers."""

import abc


class Strategy(abc.ABC):
    @staticmethod
    @abc.abstractmethod
    def get_pruning_hparams():
        """The class of the strategy's hyperparameters."""

    @staticmethod
    @abc.abstractmethod
    def prune(pruning_hparams, trained_model, current_mask=None):
        """The next Mask of a trained model."""
