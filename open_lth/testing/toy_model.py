"""A model whose results can be computed by hand."""

import torch

from open_lth.models import base


class InnerProductModel(base.Model):
    """The inner product of the input with (0, 1, ..., n-1); mean squared error."""

    def __init__(self, n):
        super().__init__()
        self.layer = torch.nn.Linear(n, 1, bias=False)
        self.layer.weight.data = torch.arange(n, dtype=torch.float32)
        self.criterion = torch.nn.MSELoss()

    def forward(self, x):
        return self.layer(x)

    @property
    def loss_criterion(self):
        return self.criterion

    @property
    def output_layer_names(self):
        raise NotImplementedError('a toy has no output layer')

    @staticmethod
    def is_valid_model_name(model_name):
        raise NotImplementedError('a toy has no name')

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        raise NotImplementedError('a toy has no name')

    @staticmethod
    def default_hparams():
        raise NotImplementedError('a toy has no hyperparameters')
