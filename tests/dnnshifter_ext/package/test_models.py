"""Models into a package and out of it again: the same structure, the same bits."""

import pytest
import torch
from torch import nn

from dnnshifter_ext import convert
from dnnshifter_ext.package import PackageError, Variant, models, read, write
from tests.dnnshifter_ext import nets


def rebuilt(model, *, name='level_1', input_shape=(3, 8, 8)):
    [found] = read(write([models.variant(name, model, {'level': 1}, input_shape)])).variants
    return models.rebuild(found)


@pytest.mark.parametrize('make', [nets.VGG, nets.FlatteningNet])
def test_a_converted_model_comes_back_bit_for_bit(make):
    torch.manual_seed(0)
    x = nets.images()
    model = convert(nets.sparsify(make()), x).model
    found = rebuilt(model)
    assert found.code == model.code and found.meta['input_shape'] == (3, 8, 8) and not found.training
    expected = model.state_dict()
    assert list(found.state_dict()) == list(expected)
    for name, tensor in found.state_dict().items():
        assert tensor.numpy().tobytes() == expected[name].numpy().tobytes(), name
    with torch.no_grad():
        assert torch.equal(found(x), model(x))


def test_a_model_with_sparse_layers_comes_back_bit_for_bit():
    torch.manual_seed(0)
    x = nets.images()
    model = convert(nets.sparsify(nets.VGG()), x, execution='sparse').model
    found = rebuilt(model)
    assert type(found) is type(model)
    with torch.no_grad():
        assert torch.equal(found(x), model(x))


def test_integer_tensors_come_back():
    model = nn.BatchNorm2d(3).eval()
    model.num_batches_tracked += 7
    found = rebuilt(nn.Sequential(model).eval())
    assert found.state_dict()['0.num_batches_tracked'].item() == 7


def test_what_cannot_be_packed_is_named():
    with pytest.raises(PackageError, match="variant 'v' cannot be packed: .*BFloat16"):
        models.variant('v', nn.Sequential(nn.Linear(2, 2)).bfloat16().eval(), {})
    with pytest.raises(ValueError, match="cannot store layer '0'"):
        models.variant('v', nn.Sequential(nn.LSTM(2, 2)).eval(), {})


def test_structures_that_are_none_of_ours_are_refused():
    good = models.variant('v', nn.Sequential(nn.Linear(2, 2)).eval(), {})
    for structure in ('', '{}', '[]', good.structure.replace('Linear', 'LSTM'), good.structure.replace('"0', '"../0')):
        [found] = read(write([Variant('v', structure, good.tensors, {})])).variants
        with pytest.raises(ValueError):
            models.rebuild(found)
    [found] = read(write([Variant('v', good.structure, {'0.weight': good.tensors['0.weight']}, {})])).variants
    with pytest.raises(ValueError, match="tensor 'bias' is missing"):
        models.rebuild(found)
