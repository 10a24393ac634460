"""Magnitude at initialisation: the scales of the layers alone decide. After training: test_all_methods.py."""

import math

import pytest
import torch

from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.registry import METHODS
from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry
from tests.dnnshifter_ext.methods.unstructured import small

# VGG-16: share alive in conv1, conv2-3, conv4-5, conv6-8, conv9-13, fc, where layer l keeps erfc(t / (sigma_l sqrt 2)),
# sigma_l = sqrt(2 / fan-in), for one t.
TABLE = {
    2: (.956, .797, .716, .607, .467, .809),
    4: (.924, .658, .531, .376, .210, .676),
    8: (.897, .548, .396, .230, .0896, .572),
    16: (.872, .456, .292, .136, .0351, .483),
    32: (.848, .375, .210, .0760, .0121, .403),
    64: (.823, .300, .143, .0383, .00339, .329),
    128: (.795, .230, .0899, .0165, 6.9e-4, .258),
    256: (.765, .167, .0504, .00567, 9.1e-5, .192),
}
GROUPS = ([0], [1, 2], [3, 4], [5, 6, 7], [8, 9, 10, 11, 12], [13])


@pytest.fixture(scope='module')
def vgg16():
    torch.manual_seed(0)
    return registry.get(ModelHparams('cifar_vgg_16', 'kaiming_normal', 'uniform'))


@pytest.mark.parametrize('ratio', [256, *(pytest.param(r, marks=pytest.mark.full) for r in (2, 4, 8, 16, 32, 64, 128))])
def test_densities_of_vgg16_at_initialisation(vgg16, ratio):
    num_kept = 14_715_584 // ratio
    mask = prune(vgg16, METHODS['magnitude'].score, Setting(), num_kept)
    assert (mask.num_total, mask.num_kept) == (14_715_584, num_kept)
    layers = [mask[name] for name in vgg16.prunable_layer_names]
    for group, share in zip(GROUPS, TABLE[ratio]):
        size = sum(layers[i].numel() for i in group)
        alive = sum(int(layers[i].sum()) for i in group) / size
        # Four standard deviations of a binomial count, and what rounding to three digits hides.
        digits = 5e-3 if share < .1 else 1.5e-3
        assert abs(alive - share) <= 4 * math.sqrt(share * (1 - share) / size) + digits * share, group


def test_layers_are_not_normalised():
    model = small.perceptron(30, 30, 30)
    plain = prune(model, METHODS['magnitude'].score, Setting(), 900)
    model[0].weight.data *= 10
    scaled = prune(model, METHODS['magnitude'].score, Setting(), 900)
    assert scaled['0.weight'].sum() > 1.5 * plain['0.weight'].sum()
