from concurrent.futures import ThreadPoolExecutor
import copy

import numpy as np
import pytest
import torch
from torch import fx, nn

from dnnshifter_ext import compiler, layers
from dnnshifter_ext.facts import Facts, Fillings, facts_of_layer
from dnnshifter_ext.layers import Filling, LayerFacts
from dnnshifter_ext.layers_in_c import LayerFactsInC

LAYERS = [nn.Linear(11, 7), nn.Conv1d(5, 6, 2, padding=1), nn.Conv2d(5, 6, 1), nn.Conv2d(5, 6, 3, padding=1),
          nn.Conv2d(6, 8, (1, 7), groups=2, padding='same'), nn.Conv2d(6, 6, 5, groups=6, bias=False),
          nn.Conv3d(4, 3, 2), nn.Linear(130, 5), nn.Conv2d(128, 6, 3, padding=1, groups=2), nn.Conv2d(65, 4, 1)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def sparse(layer, dtype, density=0.5):
    """With that share of its kernels, each of about one weight, and zeros of both signs."""
    layer = copy.deepcopy(layer).to(dtype)
    weight = layer.weight.detach()
    share = min(0.5, density / weight[0, 0].numel())
    stays = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < share
    layer.weight = nn.Parameter(weight * stays)
    return layer


@pytest.mark.parametrize('layer', LAYERS, ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('block', [None, 1, 40, layers.BLOCK])
def test_every_kernel_with_a_weight_is_found_wherever_its_weight_is(layer, dtype, block, monkeypatch):
    layer = sparse(layer, dtype, density=1)
    if block is None:
        facts = facts_of_layer(layer)
    else:
        monkeypatch.setattr(layers, 'BLOCK', block)
        facts = LayerFacts(layer)
    expected_OC = (layer.weight.detach() != 0).reshape(*layer.weight.shape[:2], -1).any(2).numpy()
    assert 0 < expected_OC.mean() < 1
    assert np.array_equal(facts.reads_any_O, expected_OC.any(1))
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


@pytest.mark.parametrize('facts_of', [facts_of_layer, LayerFacts])
def test_the_smallest_number_is_a_weight(facts_of):
    layer = nn.Conv2d(2, 2, 3)
    layer.weight.data.zero_()
    layer.weight.data[1, 0, 2, 2] = -torch.finfo(torch.float32).smallest_normal / 2**20
    assert facts_of(layer).reads_any_O.tolist() == [False, True]


@pytest.mark.skipif(compiler.find() is None, reason='no C compiler')
@pytest.mark.parametrize('layer', LAYERS, ids=str)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('seed', range(6))
def test_compiled_loops_answer_as_numpy_does(layer, dtype, seed):
    layer, generator = sparse(layer, dtype, density=(0.2, 2)[seed % 2]), np.random.default_rng(seed)
    compiled, plain = facts_of_layer(layer), LayerFacts(layer)
    assert isinstance(compiled, LayerFactsInC)
    some_O, some_I = generator.random(plain.num_outputs) < 0.7, generator.random(plain.num_inputs) < 0.7
    constants_I = np.where(some_I & (generator.random(plain.num_inputs) < 0.8), generator.normal(size=len(some_I)), 0.0)
    (constant_O, constants_O), (expected_O, expected) = (
        facts.constants(some_I, constants_I) for facts in (compiled, plain))
    assert np.array_equal(constant_O, expected_O)
    assert np.allclose(constants_O[constant_O], expected[constant_O], rtol=1e-12, atol=1e-12)
    assert np.array_equal(compiled.reads(some_O), plain.reads(some_O))
    assert np.array_equal(compiled.cut(some_O, constants_I), plain.cut(some_O, constants_I))
    assert np.allclose(compiled.sums(some_O, constants_I), plain.sums(some_O, constants_I), rtol=1e-12, atol=1e-12)

    outputs, scale_O = some_O.nonzero()[0], generator.normal(size=len(some_O)) * (generator.random(len(some_O)) < 0.8)
    weight_OCK = layer.weight.detach().double().reshape(plain.num_outputs, plain.num_columns, -1).numpy()
    scaled_OCK = weight_OCK * scale_O[:, None, None]
    for columns in (np.arange(plain.num_columns), some_I[:plain.num_columns].nonzero()[0]):
        shape = len(outputs), len(columns), plain.num_taps
        for ratio_I in (None, constants_I) if plain.groups == 1 and len(columns) else (None,):
            narrow = []
            for facts in (compiled, plain):
                narrow.append(np.zeros(shape, plain.weights_NK.dtype))
                Fillings([(facts, Filling(narrow[-1], outputs, columns, scale_O, ratio_I, len(columns) - 1))]).run()
            expected_OCK = scaled_OCK[outputs][:, columns]
            if ratio_I is not None:
                merged_OK = np.einsum('ock,c->ok', scaled_OCK[outputs], ratio_I)
                assert np.any(merged_OK) or seed % 2 == 0
                precision = 1e-12 if narrow[0].dtype == np.float64 else 1e-6
                for narrow_OCK in narrow:
                    assert np.allclose(narrow_OCK[:, -1], merged_OK, rtol=precision, atol=precision)
                    narrow_OCK[:, -1] = expected_OCK[:, -1] = 0
            assert np.array_equal(narrow[0], expected_OCK.astype(narrow[0].dtype)) and np.array_equal(*narrow)


@pytest.mark.skipif(compiler.find() is None, reason='no C compiler')
def test_many_threads_read_and_fill_each_layer_once():
    model = nn.Sequential(*(sparse(nn.Conv2d(96, 64, 3), torch.float32) for _ in range(24)))
    for _ in range(5):
        facts = Facts(fx.symbolic_trace(model))
        fillings, outputs, columns = [], np.arange(0, 64, 2), np.arange(1, 96, 3)
        for own in facts.layers.values():
            narrow = np.zeros((len(outputs), len(columns), 9), np.float32)
            fillings.append((own, Filling(narrow, outputs, columns, np.ones(64))))
        together = Fillings(fillings)
        facts.begin()
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(together.run) for _ in range(8)]:
                done.result()
        for layer, (own, filling) in zip(model, fillings, strict=True):
            weight = layer.weight.detach()
            assert np.array_equal(own.reads_any_O, (weight != 0).flatten(1).any(1))
            assert np.array_equal(filling.narrow_OCK, weight[outputs][:, columns].flatten(2))
