"""NTK-SAP: what a connection adds to the trace of the neural tangent kernel, whatever the weights and the data."""

import copy

import pytest
import scipy.stats
import torch
from torch import nn
from torch.func import functional_call

from dnnshifter_ext.methods.unstructured import ntk_sap
from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.registry import METHODS
from dnnshifter_ext.methods.unstructured.setting import Setting, reset_parameters
from open_lth.foundations.rng import preserve_rng_state
from tests.dnnshifter_ext.methods.unstructured import small


def shapes(*shape, seed=0, dtype=torch.float64):
    """A setting whose images and labels are not even numbers."""
    return Setting([(torch.full(shape, float('nan'), dtype=dtype), None)], seed)


def test_in_a_linear_layer_every_weight_is_worth_the_same():
    """E F = eps^2 * batch * alive, so dF/dm is 2 eps^2 * batch in expectation where m = 1; dead weights are at 0."""
    model, epsilon, batch, num_draws = small.perceptron(6, 4), 0.1, 50, 800
    mask = small.ones(model)
    mask['0.weight'][1, :3] = 0
    [scores] = ntk_sap.score(model, mask, shapes(batch, 6), num_draws=num_draws, epsilon=epsilon).values()
    alive = mask['0.weight'] != 0
    expected = num_draws * 2 * epsilon**2 * batch
    assert scores[alive].mean() == pytest.approx(expected, rel=0.02)
    assert not scores[~alive].any()
    # One weight: sums of m delta^2 x^2, which spread by about sqrt(2 / num_draws) = 5 %; and the noise of w delta x^2.
    assert scores[alive].std() < 0.25 * expected


def difference(model, epsilon, num_draws=1, batch=40):
    """F averaged over draws of delta, for one x; the same draws whatever epsilon."""
    inputs = torch.randn(batch, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    keep = {name: m.double() for name, m in small.ones(model).items()}
    with preserve_rng_state():
        torch.manual_seed(2)
        values = [float(ntk_sap.discrepancy(model, keep, inputs, epsilon)) for _ in range(num_draws)]
    return sum(values) / num_draws, inputs


def test_halving_epsilon_quarters_the_difference():
    model = small.perceptron(6, 10, 8, 3, activation=nn.Tanh)
    [(small_f, _), (large_f, _)] = [difference(model, epsilon) for epsilon in (0.0005, 0.001)]
    assert large_f / small_f == pytest.approx(4, rel=0.01)


def test_the_difference_is_the_norm_of_the_jacobian():
    """The oracle is autograd: the squared Frobenius norm with respect to the weights, summed over the inputs."""
    model = small.perceptron(6, 10, 8, 3, activation=nn.Tanh)
    mean, inputs = difference(model, 0.001, num_draws=1500)
    jacobians = torch.func.jacrev(lambda weights: functional_call(model, weights, inputs))(
        {name: weight.detach() for name, weight in model.named_parameters()})
    norm = float(sum(jacobian.square().sum() for jacobian in jacobians.values()))
    assert mean / 0.001**2 == pytest.approx(norm, rel=0.05)


def branches(detached=None, seed=0):
    """The gradient of the mask for one draw, written out; one of the two branches may be detached."""
    model = small.convnet()
    model[0].bias.data.fill_(0.3)
    keep = {name: m.requires_grad_() for name, m in small.ones(model).items()}
    with preserve_rng_state():
        torch.manual_seed(seed)
        reset_parameters(model)
        x = torch.randn(7, 2, 6, 6)
        delta = {name: 0.01 * torch.randn_like(model.get_parameter(name)) for name in keep}
    twin = copy.deepcopy(model)
    for network in (model, twin):  # statistics of x in the unperturbed network
        for norm in (network[1], network[4]):
            norm.momentum = 1.0
    model.train()(x), model.eval()
    for i in (1, 4):
        twin[i].load_state_dict(model[i].state_dict())
    twin.eval()
    base_m, twin_m = ({name: m.detach() if branch == detached else m for name, m in keep.items()}
                      for branch in ('base', 'twin'))
    weights = dict(model.named_parameters())
    y = functional_call(model, {name: weights[name].detach() * base_m[name] for name in keep}, x)
    z = functional_call(twin, {name: (weights[name].detach() + delta[name]) * twin_m[name] for name in keep}, x)
    gradients = torch.autograd.grad((y - z).square().sum(), list(keep.values()))
    return {name: gradient.abs() for name, gradient in zip(keep, gradients)}


def test_one_draw_written_out_with_batch_norm():
    model = small.convnet()
    setting = shapes(7, 2, 6, 6, dtype=torch.float32)
    actual = ntk_sap.score(model, small.ones(model), setting, num_draws=1)
    expected = branches()
    assert all(torch.allclose(actual[name], expected[name], rtol=1e-4, atol=1e-9) for name in expected)


@pytest.mark.parametrize('detached', ['base', 'twin'])
def test_both_branches_carry_the_gradient(detached):
    both, one = small.flat(branches()), small.flat(branches(detached))
    assert (both - one).norm() > both.norm()


def test_weights_images_and_labels_do_not_matter():
    """Only the shapes of the batches are used; the weights are drawn anew by `initialise`."""
    first = ntk_sap.score(small.convnet(0), small.ones(small.convnet()), small.setting(6, 2, 6, 6))
    second = ntk_sap.score(small.convnet(1), small.ones(small.convnet()), small.setting(6, 2, 6, 6, num_classes=2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_initialise_is_the_networks_own():
    calls = []
    setting = Setting([(torch.ones(2, 6).double(), None)] * 3, initialise=lambda model: calls.append(model))
    model = small.perceptron(6, 4)
    ntk_sap.score(model, small.ones(model), setting, num_draws=2)
    assert calls == [model] * 6, 'for every batch of every draw'


def test_two_seeds_agree_when_there_are_many_draws():
    """In a network that is sparse already, so that its connections are not all alike."""
    model = small.perceptron(6, 8, 8, 5)
    mask = prune(model, METHODS['random'].score, shapes(1, 6), 60)
    alive = small.flat(mask) != 0
    first, second = (small.flat(ntk_sap.score(model, mask, shapes(100, 6, seed=seed), num_draws=300))[alive]
                     for seed in (1, 2))
    assert scipy.stats.spearmanr(first, second).statistic > 0.9


@pytest.mark.parametrize('options', [dict(num_draws=0), dict(epsilon=0.)])
def test_nothing_to_compare_is_refused(options):
    model = small.perceptron(6, 4)
    with pytest.raises(ValueError, match='nothing is compared'):
        ntk_sap.score(model, small.ones(model), shapes(2, 6), **options)
