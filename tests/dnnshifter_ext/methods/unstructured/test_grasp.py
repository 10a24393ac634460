"""GraSP: weights whose removal leaves the gradient flow, or raises it, go first."""

import copy

import pytest
import torch
from torch.nn import functional as F

from dnnshifter_ext.methods.unstructured import grasp
from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.pruning.scores import grasp as engine_grasp
from open_lth.pruning.scores.gradients import gradients, prunable_parameters
from tests.dnnshifter_ext.methods.unstructured import small


@pytest.fixture
def model():
    return small.perceptron(6, 8, 5, activation=torch.nn.Tanh)


@pytest.fixture
def setting():
    """Two batches of different sizes."""
    first, second = (small.setting(n, 6, num_batches=1, seed=n, dtype=torch.float64).batches[0] for n in (20, 9))
    return Setting([first, second])


def gradient(model, setting, temperature):
    """Of the mean loss over all examples."""
    inputs, labels = (torch.cat(parts) for parts in zip(*setting.batches))
    return gradients(F.cross_entropy(model(inputs) / temperature, labels), prunable_parameters(model))


@torch.no_grad()
def moved(model, direction, size):
    model = copy.deepcopy(model)
    for name, step in direction.items():
        model.get_parameter(name).add_(size * step)
    return model


@pytest.mark.parametrize('temperature', [1.0, 200.0])
def test_hessian_times_gradient_against_a_finite_difference(model, setting, temperature):
    g = gradient(model, setting, temperature)
    ahead, behind = (gradient(moved(model, g, size), setting, temperature) for size in (1e-4, -1e-4))
    for name, scores in grasp.score(model, None, setting, temperature=temperature).items():
        expected = model.get_parameter(name).detach() * (ahead[name] - behind[name]) / 2e-4
        assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-7 * expected.abs().max())


def test_exact_on_a_quadratic_loss():
    """L = |W x - y|^2 / N summed over outputs: H g = 2/N x^T x g for each row of W."""
    model = small.perceptron(4, 3, loss=lambda outputs, targets: (outputs - targets).square().sum() / len(outputs))
    x, y = torch.randn(10, 4).double(), torch.randn(10, 3).double()
    weight = model[0].weight.detach()
    g = 2 / 10 * (x @ weight.T - y).T @ x
    [scores] = grasp.score(model, None, Setting([(x, y)]), temperature=1.0).values()
    assert torch.allclose(scores, weight * (g @ (2 / 10 * x.T @ x)))


@pytest.mark.parametrize('which', ['lowest', 'highest'])
@pytest.mark.parametrize('removed_share, tolerance', [(1e-4, 1e-3), (1, 0.5)])
def test_removing_a_weight_changes_the_gradient_norm_as_predicted(model, setting, which, removed_share, tolerance):
    """|g|^2 changes by about -2 w (Hg): it rises for the first that goes, and falls for the last."""
    before = sum(g.square().sum() for g in gradient(model, setting, 1.0).values())
    scores = grasp.score(model, None, setting, temperature=1.0)
    values = small.flat(scores)
    position = int(values.argmin() if which == 'lowest' else values.argmax())
    keep = torch.ones(len(values), dtype=torch.float64)
    keep[position] -= removed_share
    mask = dict(zip(sorted(scores), keep.split([scores[name].numel() for name in sorted(scores)])))
    removed = small.masked(model, {name: m.view_as(scores[name]) for name, m in mask.items()})
    after = sum(g.square().sum() for g in gradient(removed, setting, 1.0).values())
    assert float(after - before) == pytest.approx(-2 * removed_share * float(values[position]), rel=tolerance)
    assert (after > before) == (which == 'lowest')


def test_on_one_batch_it_is_the_engines_score_with_the_other_sign(model):
    setting = small.setting(20, 6, num_batches=1, dtype=torch.float64)
    ours, engines = grasp.score(model, None, setting), engine_grasp.score(model, setting.batches, seed=0)
    assert all(torch.allclose(ours[name], -engines[name], rtol=1e-9, atol=0) for name in ours)
