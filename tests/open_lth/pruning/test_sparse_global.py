import pytest
import torch

from open_lth.pruning import registry
from open_lth.pruning.mask import Mask
from open_lth.pruning.sparse_global import PruningHparams
from open_lth.testing.toy_model import InnerProductModel


class TwoLayers(InnerProductModel):
    """`layer` holds 0..9, `second` 0.5, 1.5, ..., 4.5; all signs alternate."""

    def __init__(self):
        super().__init__(10)
        self.layer.weight.data = torch.arange(10.) * (-1) ** torch.arange(10)
        self.second = torch.nn.Linear(5, 1, bias=False)
        self.second.weight.data = -(torch.arange(5.) + 0.5)


def prune(model, fraction, mask=None, ignore=None):
    hparams = PruningHparams(pruning_strategy='sparse_global', pruning_fraction=fraction,
                             pruning_layers_to_ignore=ignore)
    return {name: tensor.int().tolist() for name, tensor in registry.get(hparams)(model, mask).items()}


def kept(mask):
    return sum(sum(values) for values in mask.values())


def test_smallest_weights_of_all_layers_go():
    """15 weights, 20 % of them are 3, and the weight at the threshold goes too: 0, 0.5, 1, 1.5."""

    assert prune(TwoLayers(), 0.2) == {'layer.weight': [0, 0] + [1] * 8, 'second.weight': [0, 0, 1, 1, 1]}


@pytest.mark.parametrize('fraction, remaining', [(0.0, 9), (0.01, 8), (0.1, 8), (0.2, 7), (0.5, 4), (0.9, 0)])
def test_one_weight_more_than_asked_goes(fraction, remaining):
    """Reproduced: fraction 0 still removes one."""

    assert kept(prune(InnerProductModel(10), fraction)) == remaining


def test_ties_at_the_threshold_all_go():
    """Reproduced."""

    model = InnerProductModel(10)
    model.layer.weight.data = torch.tensor([1., -1, 1, 1, 2, -2, 3, 3, 3, 3])
    assert prune(model, 0.1) == {'layer.weight': [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]}


def test_fraction_is_of_what_remains_and_pruned_weights_stay_pruned():
    model = InnerProductModel(10)
    mask = Mask({'layer.weight': torch.tensor([1, 0, 1, 0, 1, 1, 1, 1, 1, 0])})
    assert prune(model, 0.2, mask) == {'layer.weight': [0, 0, 0, 0, 0, 1, 1, 1, 1, 0]}, (
        '7 remain: 2 and one more go'
    )


def test_ignored_layers_count_but_keep_their_weights():
    """Reproduced: 20 % of all 15 weights, taken from the 10 that may go."""

    assert prune(TwoLayers(), 0.2, ignore='second.weight') == {
        'layer.weight': [0] * 4 + [1] * 6, 'second.weight': [1] * 5}


def test_ignored_layers_come_last():
    assert list(prune(TwoLayers(), 0.2, ignore='layer.weight')) == ['second.weight', 'layer.weight']


@pytest.mark.parametrize('fraction, ignore', [
    (1.0, None), (1.5, None), (-0.1, None), (float('nan'), None), (0.5, 'layer.weight'),
    (0.1, 'layer.weight,second.weight')])
def test_impossible_requests_are_refused(fraction, ignore):
    with pytest.raises(ValueError):
        prune(TwoLayers(), fraction, ignore=ignore)


def test_the_model_and_the_given_mask_are_not_changed():
    model = InnerProductModel(10)
    mask = Mask.ones_like(model)
    prune(model, 0.5, mask)
    assert mask['layer.weight'].sum() == 10
    assert model.layer.weight.tolist() == list(range(10))


def test_the_strategy_is_bound_to_a_copy_of_its_hparams():
    hparams = PruningHparams(pruning_strategy='sparse_global', pruning_fraction=0.5)
    strategy = registry.get(hparams)
    hparams.pruning_fraction = 0.0
    assert int(strategy(InnerProductModel(10))['layer.weight'].sum()) == 4


def test_unknown_strategies_are_refused():
    with pytest.raises(ValueError):
        registry.get_pruning_hparams('nope')
    assert registry.get_pruning_hparams('sparse_global') is PruningHparams
