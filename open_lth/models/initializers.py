"""Initializers of convolutional and linear weights. Biases keep torch's default."""

import torch


def _is_weighted(module):
    return isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))


def binary(module):
    """Weights of two values, +-sigma, with the standard deviation sigma and the signs of a Kaiming normal draw."""
    if _is_weighted(module):
        torch.nn.init.kaiming_normal_(module.weight)
        module.weight.data = torch.sign(module.weight.data) * torch.std(module.weight.data)


def kaiming_normal(module):
    if _is_weighted(module):
        torch.nn.init.kaiming_normal_(module.weight)


def kaiming_uniform(module):
    if _is_weighted(module):
        torch.nn.init.kaiming_uniform_(module.weight)


def orthogonal(module):
    if _is_weighted(module):
        torch.nn.init.orthogonal_(module.weight)


def standard_normal(module):
    """The name is the DNNShifter authors'; the standard deviation is 0.1."""
    if _is_weighted(module):
        torch.nn.init.normal_(module.weight, std=0.1)
