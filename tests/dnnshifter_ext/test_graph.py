import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torchvision.ops import StochasticDepth

from dnnshifter_ext.graph import capture, rebuild
from tests.dnnshifter_ext import nets


def test_capture_computes_the_same_and_shares_the_weights():
    model = nets.VGG().eval()
    before, keys = nets.state_of(model), list(model.state_dict())
    graph_module = capture(model)
    assert not graph_module.training and list(graph_module.state_dict()) == keys
    x = nets.images()
    assert torch.equal(graph_module(x), model(x))
    assert nets.same_state(before, nets.state_of(model))
    for name, tensor in model.state_dict().items():
        assert graph_module.state_dict()[name].data_ptr() == tensor.data_ptr(), name


def test_training_mode_is_refused_by_name():
    with pytest.raises(ValueError, match=r"VGG: 'layers.0.bn' \(BatchNorm2d\) is in training mode; call model.eval"):
        capture(nets.VGG())
    with pytest.raises(ValueError, match='Pair: the model is in training mode'):
        capture(nets.Pair())


def test_untraceable_model_is_one_clear_line():
    class Branching(nets.Pair):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match='Branching: torch.fx cannot trace this model: .+') as caught:
        capture(Branching().eval())
    assert '\n' not in str(caught.value)


def test_hooks_parametrizations_and_infinite_weights_are_refused_by_name():
    model = nets.Pair().eval()
    prune.random_unstructured(model.conv1, 'weight', 0.5)
    with pytest.raises(ValueError, match="'conv1' carries a forward hook.*prune.remove"):
        capture(model)
    with pytest.raises(ValueError, match="'conv2' is parametrized"):
        model = nets.Pair().eval()
        nn.utils.parametrizations.weight_norm(model.conv2)
        capture(model)
    with pytest.raises(ValueError, match="'conv1.weight' has NaN or infinite entries"):
        model = nets.Pair().eval()
        model.conv1.weight.data[0, 0, 0, 0] = float('nan')
        capture(model)


def test_a_captured_model_can_be_captured_again():
    once = capture(nets.VGG().eval())
    twice = capture(once)
    assert twice is not once and twice.code == once.code
    assert nets.same_state(nets.state_of(once), nets.state_of(twice))


def test_rebuild_replaces_copies_and_keeps_the_order_of_the_state_dict():
    captured = capture(nets.VGG().eval())
    layer = nn.Linear(16, 7)
    rebuilt = rebuild(captured, {'fc': layer})
    assert rebuilt.fc is layer and rebuilt(nets.images()).shape == (4, 7)
    assert list(rebuilt.state_dict()) == list(captured.state_dict())
    for name, tensor in captured.state_dict().items():
        assert rebuilt.state_dict()[name].data_ptr() != tensor.data_ptr(), name


def test_stochastic_depth_is_left_out_in_evaluation_mode_only():
    model = nn.Sequential(nn.Linear(3, 2), StochasticDepth(0.5, 'row'), StochasticDepth(0.5, 'batch'), nn.ReLU())
    captured = capture(model.eval())
    assert [node.op for node in captured.graph.nodes] == ['placeholder', 'call_module', 'call_module', 'output']
    x = torch.randn(4, 3)
    assert torch.equal(captured(x), model.eval()(x))

    class Always(StochasticDepth):
        def forward(self, x):
            self.training = True
            return super().forward(x)

    assert any(node.name == 'stochastic_depth' for node in capture(Always(0.5, 'row').eval()).graph.nodes)


def test_the_layer_that_cannot_be_traced_is_named():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), Branching())).eval()
    with pytest.raises(ValueError, match=r"Sequential: torch.fx cannot trace this model: .+ \('1.1'\)"):
        capture(model)
