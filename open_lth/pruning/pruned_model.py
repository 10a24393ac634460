"""A model whose pruned weights are held at zero."""

import torch

from open_lth.foundations import paths
from open_lth.foundations.errors import CorruptFileError
from open_lth.models import base
from open_lth.pruning.mask import Mask


def load_mask_for(model, location):
    """The mask saved in a location. CorruptFileError when it is not one of this model."""
    mask = Mask.load(location)
    try:
        _check_fit(model, mask)
    except ValueError as e:
        raise CorruptFileError(f'{paths.mask(location)} does not fit the model ({e}). Restore it.') from e
    return mask


def _check_fit(model, mask):
    state = model.state_dict()
    for name in model.prunable_layer_names:
        if name not in mask:
            raise ValueError(f'missing mask value for {name}')
        if tuple(mask[name].shape) != tuple(state[name].shape):
            raise ValueError(f'the mask of {name} has shape {tuple(mask[name].shape)}, '
                             f'the weights {tuple(state[name].shape)}')
    for name in mask:
        if name not in model.prunable_layer_names:
            raise ValueError(f'key {name} found in mask but is not a valid model tensor')


class PrunedModel(base.Model):
    """Multiplies each mask into its weights at construction and before every forward pass.

    Gradients are not masked, so between an update and the next forward pass pruned weights may differ from zero.
    Raises ValueError unless the mask fits the model.
    """

    @staticmethod
    def to_mask_name(name):
        return 'mask_' + name.replace('.', '___')

    def __init__(self, model, mask):
        if isinstance(model, PrunedModel):
            raise ValueError('cannot nest pruned models')
        _check_fit(model, mask)
        super().__init__()
        self.model = model
        for name, tensor in mask.items():
            self.register_buffer(PrunedModel.to_mask_name(name), tensor.float())
        self._apply_mask()

    @torch.no_grad()
    def _apply_mask(self):
        parameters = dict(self.model.named_parameters())
        for name in self.model.prunable_layer_names:
            parameters[name].data *= getattr(self, PrunedModel.to_mask_name(name))

    def forward(self, x):
        self._apply_mask()
        return self.model(x)

    @property
    def prunable_layer_names(self):
        return self.model.prunable_layer_names

    @property
    def output_layer_names(self):
        return self.model.output_layer_names

    @property
    def loss_criterion(self):
        return self.model.loss_criterion

    def save(self, save_location, save_step):
        """Saves the inner model: its own names, no masks."""
        self.model.save(save_location, save_step)

    @staticmethod
    def default_hparams():
        raise NotImplementedError('a pruned model has no hyperparameters of its own')

    @staticmethod
    def is_valid_model_name(model_name):
        raise NotImplementedError('a pruned model has no name of its own')

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        raise NotImplementedError('a pruned model is made from a model and a mask')
