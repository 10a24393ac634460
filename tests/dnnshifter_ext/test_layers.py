import copy

import numpy as np
import pytest
import torch
from torch import nn

from dnnshifter_ext import layers
from dnnshifter_ext.layers import LayerFacts


@pytest.mark.parametrize('layer', [
    nn.Linear(11, 7), nn.Conv1d(5, 6, 2), nn.Conv2d(5, 6, 1), nn.Conv2d(5, 6, 3), nn.Conv2d(6, 8, (1, 7), groups=2),
    nn.Conv2d(6, 6, 5, groups=6), nn.Conv3d(4, 3, 2)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('block', [1, 40, layers.BLOCK])
def test_every_kernel_with_a_weight_is_found_wherever_its_weight_is(layer, dtype, block, monkeypatch):
    monkeypatch.setattr(layers, 'BLOCK', block)
    layer = copy.deepcopy(layer)
    weight = layer.weight.detach().to(dtype)
    share = min(0.5, 1 / weight[0, 0].numel())
    stays = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < share
    layer.weight = nn.Parameter(weight * stays)  # which leaves zeros of both signs
    expected_OC = (layer.weight.detach() != 0).reshape(*weight.shape[:2], -1).any(2).numpy()
    facts = LayerFacts(layer)
    assert 0 < expected_OC.mean() < 1
    assert np.array_equal(facts.reads_any_O, expected_OC.any(1))
    assert facts.density == expected_OC.mean()
    kernels = facts.kernels(np.ones(facts.num_outputs, dtype=bool), np.ones(facts.num_inputs, dtype=bool))
    outputs, columns = expected_OC.nonzero()
    groups = outputs // (facts.num_outputs // facts.groups)
    assert np.array_equal(kernels.output_N, outputs)
    assert np.array_equal(kernels.input_N, groups * expected_OC.shape[1] + columns)
    found = layer.weight.detach()[outputs, columns].double().reshape(len(outputs), -1)
    assert np.array_equal(kernels.weights_NK, found.numpy())
    read_I = np.zeros(facts.num_inputs, dtype=bool)
    read_I[kernels.input_N[kernels.output_N < 3]] = True
    assert np.array_equal(facts.reads(np.arange(facts.num_outputs) < 3), read_I)


def test_the_smallest_number_is_a_weight():
    layer = nn.Conv2d(2, 2, 3)
    layer.weight.data.zero_()
    layer.weight.data[1, 0, 2, 2] = -torch.finfo(torch.float32).smallest_normal / 2**20
    assert LayerFacts(layer).reads_any_O.tolist() == [False, True]
