"""Initializers of batch-norm scales and shifts."""

import torch


def _set(module, weight, bias):
    module.weight.data = weight
    module.bias.data = torch.full_like(module.bias.data, bias)


def uniform(module):
    if isinstance(module, torch.nn.BatchNorm2d):
        _set(module, torch.rand(module.weight.data.size()), 0)


def fixed(module):
    if isinstance(module, torch.nn.BatchNorm2d):
        _set(module, torch.ones_like(module.weight.data), 0)


def oneone(module):
    if isinstance(module, torch.nn.BatchNorm2d):
        _set(module, torch.ones_like(module.weight.data), 1)


def positivenegative(module):
    if isinstance(module, torch.nn.BatchNorm2d):
        _set(module, torch.rand(module.weight.data.size()) * 2 - 1, 0)
