"""Freshly built models have the golden weights and leave the generator where OpenLTH leaves it."""

import hashlib

import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry
from tests.helpers import SAME_TORCH, load_golden, weight_fingerprint

FILES = ('init_weights_small', 'init_weights_imagenet_resnet', 'init_weights_fork')


def entries():
    for file in FILES:
        for entry in load_golden(file)['entries']:
            name = '-'.join(str(entry[key]) for key in
                            ('model_name', 'seed', 'model_init', 'batchnorm_init', 'outputs_arg'))
            yield pytest.param(entry, id=name)


@pytest.mark.parametrize('golden', entries())
def test_initial_weights(golden):
    torch.manual_seed(golden['seed'])
    model = registry.get(ModelHparams(golden['model_name'], golden['model_init'], golden['batchnorm_init']),
                         outputs=golden['outputs_arg'])

    assert torch.rand(2).tolist() == golden['rng_after_next_two_torch_rand'], 'another number of draws'
    assert model.prunable_layer_names == golden['prunable_layer_names']
    assert model.output_layer_names == golden['output_layer_names']
    assert sum(parameter.numel() for parameter in model.parameters()) == golden['num_parameters']
    keys = '\n'.join(model.state_dict())
    assert hashlib.sha256(keys.encode()).hexdigest() == golden['state_dict_keys_in_order_sha256']
    assert {name: list(buffer.shape) for name, buffer in model.named_buffers()} == golden['buffers']
    check_parameters(dict(model.named_parameters()), golden)


def check_parameters(parameters, golden):
    # orthogonal goes through a QR decomposition, whose last bits depend on the BLAS.
    exact = SAME_TORCH and golden['model_init'] != 'orthogonal'
    assert list(parameters) == list(golden['parameters'])
    for name, expected in golden['parameters'].items():
        actual = weight_fingerprint(parameters[name])
        if exact:
            assert actual == expected, name
        shape, total, absolute, first, _ = actual
        assert shape == expected[0], name
        tolerance = 1e-5 * max(expected[2], 1e-6)
        assert total == pytest.approx(expected[1], abs=tolerance), name
        assert absolute == pytest.approx(expected[2], abs=tolerance), name
        assert first == pytest.approx(expected[3], rel=1e-4, abs=1e-6), name
