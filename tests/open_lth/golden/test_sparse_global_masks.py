"""Masks of sparse_global for fixed weights: fractions, successive levels, ignored layers and ties."""

import itertools

import pytest
import torch

from open_lth.models import registry
from open_lth.pruning import registry as pruning
from open_lth.pruning.mask import Mask
from open_lth.pruning.sparse_global import PruningHparams
from tests.helpers import load_golden, mask_fingerprint

GOLDEN = load_golden('sparse_global_masks')
TIES = 'mnist_lenet_300_100 with every parameter set to (flat_index mod 5) - 2'


def build(name):
    torch.manual_seed(0)
    model = registry.get(registry.get_default_hparams(name.split()[0]).model_hparams)
    if name == TIES:
        for parameter in model.parameters():
            parameter.data = (torch.arange(parameter.numel()) % 5 - 2).float().reshape(parameter.shape)
    return model


def chains():
    """Golden masks grouped by what stays fixed from level to level."""

    def key(result):
        return result['model'], result['pruning_fraction'], result.get('ignore') or ''

    for (model, fraction, ignore), results in itertools.groupby(sorted(GOLDEN['results'], key=key), key):
        yield pytest.param(model, fraction, ignore, list(results), id=f'{model} {fraction} {ignore}')


@pytest.mark.parametrize('model_name, fraction, ignore, results', chains())
def test_masks(model_name, fraction, ignore, results):
    model = build(model_name)
    # In the tie cases the fc layer took part, as without an ignore list.
    hparams = PruningHparams(pruning_strategy='sparse_global', pruning_fraction=fraction,
                             pruning_layers_to_ignore=ignore or None)
    prune, masks = pruning.get(hparams), [None]
    for _ in range(max(result['level'] for result in results)):
        masks.append(prune(model, masks[-1]))
    for golden in results:
        mask = masks[golden['level']]
        assert {name: mask_fingerprint(mask[name]) for name in golden['mask']} == golden['mask']
        assert sorted(mask) == sorted(golden['mask'])
        if 'key_order' in golden:
            assert list(mask) == golden['key_order']
            assert mask.sparsity.item() == pytest.approx(golden['sparsity_property'], abs=1e-6)


@pytest.mark.parametrize('error, options', {
    'fraction 1.0': dict(pruning_fraction=1.0),
    'ignore so much that too few remain': dict(pruning_layers_to_ignore='fc_layers.0.weight')}.items())
def test_requests_that_cannot_be_met_are_refused(error, options):
    assert GOLDEN['errors'][error] == 'IndexError'
    with pytest.raises((ValueError, IndexError)):
        pruning.get(PruningHparams(pruning_strategy='sparse_global', **options))(build('mnist_lenet_300_100'))


def test_unknown_layers_in_the_ignore_list_are_harmless():
    assert GOLDEN['errors']['ignore unknown layer'] == 'no error'
    model = build('mnist_lenet_10')
    plain, ignoring = (
        pruning.get(PruningHparams(pruning_strategy='sparse_global', pruning_layers_to_ignore=ignore))(
            model, Mask.ones_like(model)
        )
        for ignore in (None, 'nope.weight')
    )
    assert all(torch.equal(plain[name], ignoring[name]) for name in plain)
