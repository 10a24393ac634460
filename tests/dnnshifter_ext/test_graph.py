import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from dnnshifter_ext.graph import capture, rebuild
from tests.dnnshifter_ext import nets


def test_capture_computes_the_same_and_leaves_the_model_alone():
    model = nets.VGG().train()
    before, keys = nets.state_of(model), list(model.state_dict())
    graph_module = capture(model)
    assert model.training and not graph_module.training
    assert nets.same_state(before, nets.state_of(model))
    assert list(graph_module.state_dict()) == keys
    with torch.no_grad():
        next(graph_module.parameters()).zero_()
    assert nets.same_state(before, nets.state_of(model))
    x = nets.images()
    assert torch.equal(capture(model)(x), model.eval()(x))


def test_untraceable_model_is_one_clear_line():
    class Branching(nets.Pair):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match='Branching: torch.fx cannot trace this model: .+') as caught:
        capture(Branching())
    assert '\n' not in str(caught.value)


def test_hooks_parametrizations_and_infinite_weights_are_refused_by_name():
    model = nets.Pair()
    prune.random_unstructured(model.conv1, 'weight', 0.5)
    with pytest.raises(ValueError, match="'conv1' carries a forward hook.*prune.remove"):
        capture(model)
    with pytest.raises(ValueError, match="'conv2' is parametrized"):
        model = nets.Pair()
        nn.utils.parametrizations.weight_norm(model.conv2)
        capture(model)
    with pytest.raises(ValueError, match="'conv1.weight' has NaN or infinite entries"):
        model = nets.Pair()
        model.conv1.weight.data[0, 0, 0, 0] = float('nan')
        capture(model)


def test_a_captured_model_can_be_captured_again():
    once = capture(nets.VGG())
    twice = capture(once)
    assert twice is not once and twice.code == once.code
    assert nets.same_state(nets.state_of(once), nets.state_of(twice))


def test_rebuild_replaces_copies_and_keeps_the_order_of_the_state_dict():
    captured = capture(nets.VGG())
    layer = nn.Linear(16, 7)
    rebuilt = rebuild(captured, {'fc': layer})
    assert rebuilt.fc is layer and rebuilt(nets.images()).shape == (4, 7)
    assert list(rebuilt.state_dict()) == list(captured.state_dict())
    for name, tensor in captured.state_dict().items():
        assert rebuilt.state_dict()[name].data_ptr() != tensor.data_ptr(), name
