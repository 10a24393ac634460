import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.foundations.step import Step
from open_lth.models import registry
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel
from open_lth.testing.toy_model import InnerProductModel


@pytest.fixture
def model():
    """Weights 0..9."""

    return InnerProductModel(10)


def mask_of(*kept):
    return Mask({'layer.weight': torch.tensor([int(i in kept) for i in range(10)])})


def test_without_pruning_nothing_changes(model):
    example = torch.ones(1, 10)
    expected = model(example)
    assert torch.equal(PrunedModel(model, Mask.ones_like(model))(example), expected)


def test_pruned_weights_are_zero_from_the_start(model):
    pruned = PrunedModel(model, mask_of(1, 4, 9))
    assert model.layer.weight.tolist() == [0, 1, 0, 0, 4, 0, 0, 0, 0, 9]
    assert pruned(torch.ones(1, 10)).item() == 14


def test_every_forward_pass_applies_the_mask_again(model):
    pruned = PrunedModel(model, mask_of(1, 4, 9))
    model.layer.weight.data.fill_(1)
    assert pruned(torch.ones(1, 10)).item() == 3
    assert model.layer.weight.sum().item() == 3


def test_gradients_are_not_masked(model):
    """Reproduced: between an update and the next pass, pruned weights move."""

    pruned = PrunedModel(model, mask_of(1, 4, 9))
    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    pruned.loss_criterion(pruned(torch.ones(1, 10))[0], torch.zeros(1)).backward()
    optimizer.step()
    assert model.layer.weight[0].item() != 0
    pruned(torch.ones(1, 10))
    assert model.layer.weight[0].item() == 0


def test_state_dict_has_the_masks_first(model):
    pruned = PrunedModel(model, mask_of(1))
    assert list(pruned.state_dict()) == ['mask_layer___weight', 'model.layer.weight']
    assert pruned.mask_layer___weight.dtype == torch.float32
    assert PrunedModel.to_mask_name('a.b.c') == 'mask_a___b___c'


def test_integer_masks_are_converted(model):
    assert (
        PrunedModel(model, Mask({'layer.weight': torch.ones(10, dtype=torch.int32)}))(
            torch.ones(1, 10)
        ).item()
        == 45
    )


def test_properties_are_those_of_the_model_inside():
    inner = registry.get(ModelHparams('mnist_lenet_10', 'kaiming_normal', 'uniform'))
    pruned = PrunedModel(inner, Mask.ones_like(inner))
    assert pruned.prunable_layer_names == inner.prunable_layer_names
    assert pruned.output_layer_names == inner.output_layer_names
    assert pruned.loss_criterion is inner.loss_criterion


def test_saved_weights_have_the_names_of_the_model_inside(local_platform, tmp_path):
    hparams = ModelHparams('mnist_lenet_10', 'kaiming_normal', 'uniform')
    inner = registry.get(hparams)
    mask = Mask.ones_like(inner)
    mask['fc.weight'][0] = 0
    PrunedModel(inner, mask).save(str(tmp_path), Step(3, 10))
    loaded = registry.load(str(tmp_path), Step(3, 10), hparams).state_dict()
    assert list(loaded) == list(inner.state_dict()) and not loaded['fc.weight'][0].any()


@pytest.mark.parametrize('mask', [
    Mask(), Mask({'layer.weight': torch.ones(9)}), Mask({'layer.weight': torch.ones(1, 10)}),
    Mask({'layer.weight': torch.ones(10), 'other': torch.ones(3)})])
def test_masks_that_do_not_fit_are_refused(model, mask):
    with pytest.raises(ValueError):
        PrunedModel(model, mask)


def test_nesting_is_refused(model):
    pruned = PrunedModel(model, mask_of(1))
    with pytest.raises(ValueError):
        PrunedModel(pruned, mask_of(1))


@pytest.mark.parametrize('method, args', [('default_hparams', ()), ('is_valid_model_name', ('x',)),
                                          ('get_model_from_name', ('x', None, 1))])
def test_it_is_no_family_of_its_own(method, args):
    with pytest.raises(NotImplementedError):
        getattr(PrunedModel, method)(*args)
