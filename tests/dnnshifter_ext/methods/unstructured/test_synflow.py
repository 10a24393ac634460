"""SynFlow: conservation of flow, no data, and layers that are emptied only if scores are not refreshed."""

import copy

import pytest
import torch
from torch import nn

from dnnshifter_ext.methods.unstructured import synflow
from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.select import empty_layers
from tests.dnnshifter_ext.methods.unstructured import small
from tests.helpers import state_of

IMAGES = small.setting(1, 2, 6, 6)


def chain():
    """A network with biases, which zero_bias has to leave out for the law to hold."""
    torch.manual_seed(0)
    return small.Network(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1),
        nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(6, 5))


def flow(model):
    """R, by its definition."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if name.endswith('bias') else parameter.abs())
        return model(torch.ones(1, 2, 6, 6).double()).sum()


def test_scores_of_each_layer_sum_to_the_flow_in_every_round():
    rounds = []

    def score(model, mask, setting):
        total = flow(model)
        scores = synflow.score(model, mask, setting, zero_bias=True)
        rounds.append([float(tensor.sum() / total) for tensor in scores.values()])
        return scores

    prune(chain(), score, IMAGES, 100, schedule='exponential', num_rounds=10)
    assert len(rounds) == 10 and all(ratio == pytest.approx(1, rel=1e-9) for ratios in rounds for ratio in ratios)


def test_with_biases_later_layers_have_more_flow():
    """The option matters: otherwise the law would hold by itself."""
    scores = synflow.score(chain(), None, IMAGES)
    sums = [float(tensor.sum()) for tensor in scores.values()]
    assert sums[0] < 0.999 * sums[1] < 0.999**2 * sums[2]


def test_flow_into_a_unit_is_flow_out_of_it():
    model = small.perceptron(6, 8, 7, 5)
    scores = list(synflow.score(model, None, small.setting(1, 6)).values())
    for incoming, outgoing in zip(scores, scores[1:]):
        assert torch.allclose(incoming.sum(1), outgoing.sum(0), rtol=1e-12)


def test_signs_and_trained_means_do_not_matter_scores_are_double():
    model = chain()
    expected = synflow.score(copy.deepcopy(model), None, IMAGES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.randint(2, parameter.shape) * 2 - 1)
        model[1].running_mean.fill_(100.)
    actual = synflow.score(model, None, IMAGES)
    assert all(tensor.dtype == torch.float64 and torch.equal(tensor, expected[name]) for name, tensor in actual.items())


def test_images_and_labels_do_not_matter():
    first, second = (synflow.score(chain(), None, small.setting(n, 2, 6, 6, seed=n)) for n in (1, 7))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_flow_beyond_float32_is_no_problem():
    model = small.perceptron(*[30] * 30)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(100.)
    scores = small.flat(synflow.score(model.float(), None, small.setting(1, 30)))
    assert scores.isfinite().all() and scores.max() > 1e39


@pytest.mark.parametrize('num_rounds, collapses', [(1, True), (100, False)])
def test_an_unbalanced_network_collapses_in_one_round_only(num_rounds, collapses):
    """The wide layer shares the flow among 4,000 weights, the narrow ones among 40: 30 weights, 3 layers."""
    mask = prune(small.perceptron(10, 4, 1000, 4), synflow.score, small.setting(1, 10), 30,
                 schedule='exponential', num_rounds=num_rounds)
    assert bool(empty_layers(mask)) == collapses and mask.num_kept == 30


def test_weights_that_stay_have_their_bits():
    model = chain()
    before = state_of(model)
    mask = prune(model, synflow.score, IMAGES, 50, schedule='exponential', num_rounds=5)
    after = small.masked(model, mask).state_dict()
    assert all(torch.equal(after[name], before[name] * mask[name]) for name in mask)
