"""Random pruning: over the whole network, within each layer, and as a shuffle of another mask."""

import math

import pytest
import torch

from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.registry import METHODS
from open_lth.utils.tensor_utils import shuffle_state_dict
from tests.dnnshifter_ext.methods.unstructured import small

SIZES = (100, 200, 50, 10)


def pruned(name, ratio, seed=0, **how):
    model = small.perceptron(*SIZES)
    setting = small.setting(1, 100, seed=seed)
    return prune(model, METHODS[name].score, setting, small.ones(model).num_total // ratio, **how)


@pytest.mark.parametrize('ratio', [2, 16])
def test_each_layer_ends_near_the_same_density(ratio):
    for keep in pruned('random', ratio).values():
        deviation = math.sqrt(keep.numel() / ratio * (1 - 1 / ratio))
        assert abs(int(keep.sum()) - keep.numel() / ratio) <= 4 * deviation


def test_a_seed_per_tensor_in_order_of_the_names():
    """So that two networks with the same names have the same draws."""
    scores = METHODS['random'].score(small.perceptron(4, 3, 2), None, small.setting(1, 4, seed=7))
    for i, (name, shape) in enumerate((('0.weight', (3, 4)), ('2.weight', (2, 3)))):
        assert torch.equal(scores[name], torch.rand(shape, generator=torch.Generator().manual_seed(7 + i)))


@pytest.mark.parametrize('how', [{}, dict(schedule='exponential', num_rounds=5)])
def test_layerwise_is_exact_in_each_layer(how):
    for keep in pruned('random_layerwise', 16, **how).values():
        assert abs(int(keep.sum()) - keep.numel() / 16) <= len(SIZES) * how.get('num_rounds', 1)


def test_layerwise_is_random_within_the_layer():
    first, second = (pruned('random_layerwise', 4, seed)['0.weight'] for seed in (0, 1))
    overlap = int((first * second).sum())
    assert abs(overlap - 20000 / 16) <= 4 * math.sqrt(20000 / 16)


def test_a_shuffled_mask_has_the_same_counts_in_each_layer():
    mask = pruned('magnitude', 8)
    shuffled = shuffle_state_dict(mask, seed=3)
    assert all(shuffled[name].sum() == mask[name].sum() for name in mask)
    assert not torch.equal(shuffled['0.weight'], mask['0.weight'])
