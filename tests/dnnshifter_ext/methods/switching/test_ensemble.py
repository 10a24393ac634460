"""The most confident model answers."""

import pytest
import torch
from torch import nn

from dnnshifter_ext.costs import size_bytes
from dnnshifter_ext.methods.switching.ensemble import Ensemble, most_confident


def linear(seed, outputs=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, outputs), nn.BatchNorm1d(outputs))


def test_the_highest_probability_counts_and_not_the_highest_logit():
    sure = torch.tensor([[0.0, 3.0, 0.0]])
    unsure = torch.tensor([[9.0, 8.0, 9.5]])
    assert most_confident(torch.stack([unsure, sure])).tolist() == [1]


def test_each_image_has_the_model_that_is_surest_of_it():
    logits_MND = torch.tensor([[[5.0, 0.0], [0.1, 0.0]], [[0.0, 0.1], [0.0, 4.0]]])
    assert most_confident(logits_MND).tolist() == [0, 1]


@pytest.mark.parametrize('margin', [2.0, 200.0])  # 200: all probabilities are 1 in float32
def test_of_equally_confident_models_the_first_one_counts(margin):
    first, second = torch.tensor([[0.0, margin, 0.0]]), torch.tensor([[margin, 0.0, 0.0]])
    assert most_confident(torch.stack([first, second, second])).tolist() == [1]
    assert most_confident(torch.stack([second, first, first])).tolist() == [0]


def test_an_ensemble_of_one_is_that_model():
    model, images = linear(0).eval(), torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(Ensemble([model])(images), model(images).argmax(1))


def test_memory_is_the_sum_of_the_models():
    models = [linear(0), linear(1, outputs=9)]
    assert Ensemble(models).size_bytes == sum(map(size_bytes, models))
    # Weights, biases, and of the batch norm four vectors and a counter of 8 bytes.
    assert Ensemble(models[:1]).size_bytes == 4 * (12 * 4 + 4 + 4 * 4) + 8


def test_there_has_to_be_a_model():
    with pytest.raises(ValueError, match='at least one model'):
        Ensemble([])
