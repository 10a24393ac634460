"""What every model offers: its prunable layers, its output layer, its loss, and saving."""

import abc

import torch

from open_lth.foundations import paths
from open_lth.platforms.platform import get_platform


class Model(torch.nn.Module, abc.ABC):
    @staticmethod
    @abc.abstractmethod
    def is_valid_model_name(model_name): pass

    @staticmethod
    @abc.abstractmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        """A new model; `initializer` is applied to every module. ValueError for a name of another family."""

    @property
    @abc.abstractmethod
    def output_layer_names(self):
        """Names of the output layer's parameters, which never transfer between tasks of different sizes."""

    @property
    @abc.abstractmethod
    def loss_criterion(self):
        """A callable (outputs, labels) -> mean loss."""

    @staticmethod
    @abc.abstractmethod
    def default_hparams():
        """The LotteryDesc with which this family is usually trained."""

    @property
    def prunable_layer_names(self):
        """Names of the weights of all convolutions and linear layers, in module order."""
        return [f'{name}.weight' for name, module in self.named_modules()
                if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))]

    def save(self, save_location, save_step):
        """Writes the state dict of this step (primary process only)."""
        save_state_dict(self.state_dict(), save_location, save_step)


def save_state_dict(state_dict, save_location, save_step):
    platform = get_platform()
    if not platform.is_primary_process:
        return
    platform.makedirs(save_location)
    platform.save_model(state_dict, paths.model(save_location, save_step))


class _Delegating:
    """A wrapper around a Model that answers as the Model would."""

    @property
    def prunable_layer_names(self):
        return self.module.prunable_layer_names

    @property
    def output_layer_names(self):
        return self.module.output_layer_names

    @property
    def loss_criterion(self):
        return self.module.loss_criterion

    def save(self, save_location, save_step):
        self.module.save(save_location, save_step)


class DataParallel(_Delegating, torch.nn.DataParallel):
    def __init__(self, module):
        super().__init__(module=module)


class DistributedDataParallel(_Delegating, torch.nn.parallel.DistributedDataParallel):
    def __init__(self, module, device_ids):
        super().__init__(module=module, device_ids=device_ids)


def default_desc(dataset_name, batch_size, model_name, training, pruning=None):
    """A LotteryDesc with the choices that all families share: Kaiming normal, uniform batch norm, SGD, 20 % a level."""
    from open_lth.foundations import hparams
    from open_lth.lottery.desc import LotteryDesc
    from open_lth.pruning import sparse_global
    return LotteryDesc(
        model_hparams=hparams.ModelHparams(model_name, model_init='kaiming_normal', batchnorm_init='uniform'),
        dataset_hparams=hparams.DatasetHparams(dataset_name, batch_size),
        training_hparams=hparams.TrainingHparams(optimizer_name='sgd', **training),
        pruning_hparams=sparse_global.PruningHparams(
            pruning_strategy='sparse_global', pruning_fraction=0.2, **(pruning or {})))
