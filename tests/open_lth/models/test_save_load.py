import pytest
import torch

from open_lth.foundations.hparams import ModelHparams
from open_lth.foundations.step import Step
from open_lth.models import base, registry

HPARAMS = ModelHparams('mnist_lenet_20_10', 'kaiming_normal', 'uniform')
STEP = Step.from_str('13ep27it', 400)


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_what_is_saved_is_loaded(local_platform, tmp_path):
    model = registry.get(HPARAMS)
    location = str(tmp_path / 'new')
    assert not registry.exists(location, STEP)
    model.save(location, STEP)
    assert registry.exists(location, STEP)
    assert (tmp_path / 'new' / 'model_ep13_it27.pth').is_file()
    assert same(registry.load(location, STEP, HPARAMS).state_dict(), model.state_dict())


def test_the_file_is_a_plain_state_dict(local_platform, tmp_path):
    model = registry.get(HPARAMS)
    model.save(str(tmp_path), STEP)
    assert same(torch.load(tmp_path / 'model_ep13_it27.pth', weights_only=True), model.state_dict())


def test_loading_consumes_the_draws_of_a_build(local_platform, tmp_path):
    """Reproduced: a model is built to load the weights into."""

    registry.get(HPARAMS).save(str(tmp_path), STEP)
    torch.manual_seed(0)
    registry.get(HPARAMS)
    expected = torch.rand(1)
    torch.manual_seed(0)
    registry.load(str(tmp_path), STEP, HPARAMS)
    assert torch.equal(torch.rand(1), expected)


def test_absent_model_is_a_file_not_found(local_platform, tmp_path):
    with pytest.raises(FileNotFoundError):
        registry.load(str(tmp_path), STEP, HPARAMS)


@pytest.mark.parametrize('other', ['mnist_lenet_20', 'mnist_lenet_21_10', 'cifar_resnet_8_4'])
def test_weights_of_another_architecture_are_refused_with_the_path(local_platform, tmp_path, other):
    registry.get(HPARAMS).save(str(tmp_path), STEP)
    with pytest.raises(ValueError, match='model_ep13_it27.pth'):
        registry.load(str(tmp_path), STEP, ModelHparams(other, 'kaiming_normal', 'uniform'))


@pytest.mark.parametrize('content', [b'', b'rubbish', b'PK\x03\x04rubbish'])
def test_damaged_file_is_named_and_kept(local_platform, tmp_path, content):
    path = tmp_path / 'model_ep13_it27.pth'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='model_ep13_it27.pth'):
        registry.load(str(tmp_path), STEP, HPARAMS)
    assert path.read_bytes() == content


def test_parallel_wrapper_answers_and_saves_as_the_model_inside(local_platform, tmp_path):
    model = registry.get(HPARAMS)
    wrapped = base.DataParallel(model)
    assert wrapped.prunable_layer_names == model.prunable_layer_names
    assert wrapped.output_layer_names == model.output_layer_names
    assert wrapped.loss_criterion is model.loss_criterion
    wrapped.save(str(tmp_path), STEP)
    assert same(registry.load(str(tmp_path), STEP, HPARAMS).state_dict(), model.state_dict())
