"""Fully connected networks for MNIST (LeNet-300-100 and its like): mnist_lenet_N1[_N2...]."""

import torch
from torch import nn
import torch.nn.functional as F

from open_lth.models import base, names


class Model(base.Model):
    """Linear layers 784 -> N1 -> N2 ... with ReLU, then `fc` to the outputs."""

    def __init__(self, plan, initializer, outputs=10):
        super().__init__()
        sizes = [784] + plan
        self.fc_layers = nn.ModuleList(nn.Linear(inputs, units) for inputs, units in zip(sizes, plan))
        self.fc = nn.Linear(sizes[-1], outputs)
        self.criterion = nn.CrossEntropyLoss()
        self.apply(initializer)

    def forward(self, x):
        x = torch.flatten(x, 1)
        for layer in self.fc_layers:
            x = F.relu(layer(x))
        return self.fc(x)

    @property
    def output_layer_names(self):
        return ['fc.weight', 'fc.bias']

    @property
    def loss_criterion(self):
        return self.criterion

    @staticmethod
    def is_valid_model_name(model_name):
        # OpenLTH compatibility: the second part may go on after 'lenet' ('mnist_lenetx_10').
        parts = model_name.split('_')
        return (model_name.startswith('mnist_lenet') and len(parts) > 2
                and all(names.is_positive_int(part) for part in parts[2:]))

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        if not Model.is_valid_model_name(model_name):
            raise ValueError(f'invalid model name: {model_name}')
        return Model([int(units) for units in model_name.split('_')[2:]], initializer, outputs or 10)

    @staticmethod
    def default_hparams():
        return base.default_desc('mnist', 128, 'mnist_lenet_300_100', dict(lr=0.1, training_steps='40ep'),
                                 dict(pruning_layers_to_ignore='fc.weight'))
