"""ProsPr: the loss after a few steps of training, with respect to the mask before them."""

import pytest
import torch

from dnnshifter_ext.methods.unstructured import prospr
from dnnshifter_ext.methods.unstructured.registry import METHODS
from dnnshifter_ext.methods.unstructured.setting import Setting
from tests.dnnshifter_ext.methods.unstructured import small


def snip(model, setting):
    return METHODS['snip'].score(model, None, setting)


def assert_close(first, second, **tolerance):
    assert list(first) == list(second)
    assert all(torch.allclose(first[name], second[name], **tolerance) for name in first)


def test_without_steps_it_is_snip():
    setting = small.setting(8, 2, 6, 6, num_batches=1)
    actual = prospr.score(small.convnet(), small.ones(small.convnet()), setting, num_steps=0)
    expected = snip(small.convnet(), setting)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize('options', [dict(), dict(num_steps=1), dict(momentum=0.9), dict(first_order=True)])
def test_steps_of_length_0_are_snip_on_the_last_batch(options):
    setting = small.setting(6, 2, 6, 6, num_batches=1)
    actual = prospr.score(small.convnet(), small.ones(small.convnet()), setting, lr=0.0, **options)
    assert_close(actual, snip(small.convnet(), setting))


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_for_a_linear_loss_first_order_is_all_there_is(momentum):
    """No second derivatives: the mean output is linear in the weights of one layer."""
    model = small.perceptron(6, 4, loss=lambda outputs, labels: (outputs * labels).mean())
    setting = Setting([(torch.randn(8, 6).double(), torch.randn(8, 4).double()) for _ in range(4)])
    first, full = (prospr.score(model, small.ones(model), setting, momentum=momentum, first_order=first_order)
                   for first_order in (True, False))
    assert_close(first, full)


def test_first_order_is_another_score_for_a_curved_loss():
    model, setting = small.convnet(), small.setting(6, 2, 6, 6)
    first, full = (small.flat(prospr.score(model, small.ones(model), setting, first_order=first_order))
                   for first_order in (True, False))
    assert (first - full).norm() > 0.05 * full.norm()


def final_loss(model, keep, mask, setting, num_steps, lr, momentum):
    """The loss after training w * keep by torch's own SGD, under the mask."""
    weights = small.masked(model, keep)
    optimiser = torch.optim.SGD(weights.parameters(), lr, momentum)
    for inputs, labels in setting.batches[:num_steps]:
        optimiser.zero_grad()
        weights.loss_criterion(weights(inputs), labels).backward()
        optimiser.step()
        weights.load_state_dict(small.masked(weights, mask).state_dict())
    inputs, labels = setting.batches[num_steps]
    return float(weights.loss_criterion(weights(inputs), labels).detach())


@pytest.mark.parametrize('density', [1, 0.5])
@pytest.mark.parametrize('momentum', [0.0, 0.9])
@pytest.mark.parametrize('layer, index', [('0.weight', (2, 1)), ('2.weight', (3, 4)), ('4.weight', (0, 2))])
def test_against_a_finite_difference_of_training_itself(layer, index, momentum, density):
    """Biases move too, pruned weights do not; momentum is that of torch's optimiser, from the first step on."""
    model = small.perceptron(6, 8, 7, 5, bias=True, activation=torch.nn.Tanh)
    mask = {name: (torch.rand(m.shape) < density).float() for name, m in small.ones(model).items()}
    mask[layer][index] = 1
    setting = small.setting(20, 6, dtype=torch.float64)
    losses = []
    for change in (1e-5, -1e-5):
        keep = {name: m.double() for name, m in mask.items()}
        keep[layer][index] += change
        losses.append(final_loss(model, keep, mask, setting, 3, 0.1, momentum))
    expected = abs(losses[0] - losses[1]) / 2e-5
    scores = prospr.score(small.masked(model, mask), mask, setting, momentum=momentum)
    assert float(scores[layer][index]) == pytest.approx(expected, rel=1e-4)


def test_each_step_has_a_batch_of_its_own():
    model = small.perceptron(6, 8, 5)
    setting = small.setting(20, 6, dtype=torch.float64)
    fewer = Setting(setting.batches[:1])
    first, second = (prospr.score(model, small.ones(model), s) for s in (setting, fewer))
    assert not torch.allclose(first['0.weight'], second['0.weight'])
    assert METHODS['prospr'].options['num_steps'] == 3
