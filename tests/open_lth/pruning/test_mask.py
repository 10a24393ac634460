import json

import numpy as np
import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry
from open_lth.pruning.mask import Mask


@pytest.fixture
def mask():
    return Mask({'hello': torch.ones(2, 3), 'world': torch.tensor([1, 0, 0, 1])})


def test_order_of_keys_is_kept(mask):
    mask['alpha'] = np.zeros(3)
    assert list(mask) == ['hello', 'world', 'alpha'] and isinstance(mask['alpha'], torch.Tensor)


@pytest.mark.parametrize(
    'key, value',
    [
        ('', torch.ones(1)),
        (3, torch.ones(1)),
        (None, torch.ones(1)),
        ('a', [1, 0]),
        ('a', 1),
        ('a', 'x'),
        ('a', torch.tensor([0.5])),
        ('a', torch.tensor([2])),
        ('a', np.array([-1])),
        ('a', torch.tensor([float('nan')])),
    ],
)
def test_bad_items_are_refused(mask, key, value):
    with pytest.raises(ValueError):
        mask[key] = value
    with pytest.raises(ValueError):
        Mask({key: value})


def test_ones_like_covers_the_prunable_layers():
    model = registry.get(ModelHparams('cifar_resnet_8_4', 'kaiming_normal', 'uniform'))
    mask = Mask.ones_like(model)
    assert list(mask) == model.prunable_layer_names
    assert all(tensor.dtype == torch.float32 and bool((tensor == 1).all()) for tensor in mask.values())
    assert {name: tensor.shape for name, tensor in mask.items()} == {
        name: model.state_dict()[name].shape for name in mask}


def test_numpy(mask):
    arrays = mask.numpy()
    assert arrays['world'].tolist() == [1, 0, 0, 1] and isinstance(arrays['hello'], np.ndarray)


def test_sparsity_and_density(mask):
    assert mask.sparsity.item() == pytest.approx(0.2) and mask.density.item() == pytest.approx(0.8)
    assert Mask({'a': torch.zeros(4)}).density.item() == 0


def test_files(local_platform, tmp_path, mask):
    location = tmp_path / 'new'
    assert not Mask.exists(str(location))
    mask.save(str(location))
    assert Mask.exists(str(location))
    raw = torch.load(location / 'mask.pth', weights_only=True)
    assert type(raw) is dict and {tensor.dtype for tensor in raw.values()} == {torch.int32}
    assert (location / 'sparsity_report.json').read_text() == '{\n    "total": 10.0,\n    "unpruned": 8.0\n}'
    loaded = Mask.load(str(location))
    assert isinstance(loaded, Mask) and list(loaded) == list(mask)
    assert all(torch.equal(loaded[name], mask[name].int()) for name in mask)


def test_report_appears_before_the_mask_that_marks_the_stage_done(
    local_platform, tmp_path, mask, monkeypatch
):
    monkeypatch.setattr(type(local_platform), 'save_model', staticmethod(lambda *args: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        mask.save(str(tmp_path))
    assert json.loads((tmp_path / 'sparsity_report.json').read_text())['unpruned'] == 8


def test_absent_mask_is_refused(local_platform, tmp_path):
    with pytest.raises(ValueError):
        Mask.load(str(tmp_path))


@pytest.mark.parametrize('content', [{'a': torch.tensor([2.0])}, {'a': 3}, [1, 2], {3: torch.ones(1)}])
def test_file_of_something_else_is_named(local_platform, tmp_path, content):
    torch.save(content, tmp_path / 'mask.pth')
    with pytest.raises(ValueError, match='mask.pth'):
        Mask.load(str(tmp_path))
