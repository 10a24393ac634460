"""SNIP: the effect on the loss of switching a connection off."""

import torch
from torch.func import functional_call
from torch.nn import functional as F

from dnnshifter_ext.methods.unstructured.registry import METHODS
from dnnshifter_ext.methods.unstructured.setting import Setting
from tests.dnnshifter_ext.methods.unstructured import small

score = METHODS['snip'].score


def test_weight_times_gradient_is_the_gradient_of_the_mask():
    model, setting = small.perceptron(6, 8, 5), small.setting(20, 6, num_batches=1, dtype=torch.float64)
    keep = {name: torch.ones_like(model.get_parameter(name), requires_grad=True) for name in small.ones(model)}
    [(inputs, labels)] = setting.batches
    outputs = functional_call(model, {name: model.get_parameter(name) * m for name, m in keep.items()}, inputs)
    gradients = torch.autograd.grad(F.cross_entropy(outputs, labels), list(keep.values()))
    scores = score(model, None, setting)
    assert all(torch.allclose(scores[name], gradient.abs()) for name, gradient in zip(keep, gradients))


def test_closed_form_of_a_linear_model_with_squared_loss():
    """L = mean over N and O of (x W^T - y)^2, so dL/dW = 2 / (N O) (x W^T - y)^T x."""
    model = small.perceptron(4, 3, loss=F.mse_loss)
    x, y = torch.randn(10, 4).double(), torch.randn(10, 3).double()
    weight = model[0].weight.detach()
    expected = (weight * ((2 / 30) * (x @ weight.T - y).T @ x)).abs()
    [actual] = score(model, None, Setting([(x, y)])).values()
    assert torch.allclose(actual, expected)


def test_a_weight_on_a_dead_path_is_worth_nothing():
    model = small.perceptron(6, 8, 5, activation=torch.nn.Tanh)
    mask = small.ones(model)
    mask['2.weight'][:, 3] = 0  # nobody reads hidden unit 3
    scores = score(small.masked(model, mask), mask, small.setting(20, 6, dtype=torch.float64))
    assert not scores['0.weight'][3].any() and scores['0.weight'].count_nonzero() == 7 * 6
