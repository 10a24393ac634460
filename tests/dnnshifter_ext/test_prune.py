import dataclasses

import pytest
import torch

from dnnshifter_ext import facts, prune
from dnnshifter_ext.graph import capture
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.removal import plan_removal
from tests.dnnshifter_ext import nets


def planned(model):
    graph_module, structure = nets.fused_and_structure(model)
    return graph_module, plan_removal(structure)


def test_a_plan_written_by_hand():
    model = nets.Pair(channels=4).eval()
    with torch.no_grad():
        model.conv1.weight[:3] = 0
        model.conv1.bias[:3] = torch.tensor([1.0, -1.0, 2.0])
    plan = RemovalPlan((
        LayerPlan('conv1', 4, 3, keep_outputs=(0, 3), keep_inputs=(0, 1, 2), emptied=Constants((0,), (1.0,))),
        LayerPlan('conv2', 4, 4, keep_outputs=(0, 1, 2, 3), keep_inputs=(0, 3),
                  folded=Constants((2,), (2.0,)))))
    small = apply_plan(capture(model), plan)
    assert tuple(small.conv1.weight.shape) == (2, 3, 3, 3) and small.conv1.out_channels == 2
    assert tuple(small.conv2.weight.shape) == (4, 2, 3, 3) and small.conv2.in_channels == 2
    assert torch.equal(small.conv2.weight, model.conv2.weight[:, [0, 3]])
    expected = model.conv2.bias + 2 * model.conv2.weight[:, 2].sum((1, 2))
    assert torch.allclose(small.conv2.bias, expected, atol=1e-6)
    assert small.conv1.weight[0].count_nonzero() == 0 and small.conv1.bias[0] == 1
    assert torch.allclose(small(nets.images()), model(nets.images()), atol=1e-5)


@pytest.mark.parametrize('build', [nets.LeNet, nets.VGG, nets.ResNet, nets.FlatteningNet])
def test_input_is_untouched_and_shares_no_memory(build):
    graph_module, plan = planned(nets.sparsify(build()))
    before, code = nets.state_of(graph_module), graph_module.code
    small = apply_plan(graph_module, plan)
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.zero_()
    assert nets.same_state(before, nets.state_of(graph_module)) and graph_module.code == code


def test_weights_are_contiguous_parameters_of_the_old_type():
    graph_module, plan = planned(nets.sparsify(nets.VGG()).to(torch.float64))
    for name, parameter in apply_plan(graph_module, plan).named_parameters():
        assert parameter.is_contiguous() and parameter.requires_grad, name
        assert parameter.dtype == torch.float64, name


def test_a_bias_is_added_where_a_constant_needs_one_and_nowhere_else():
    model = nets.Pair(bias=False).eval()
    with torch.no_grad():
        model.conv1.weight[0] = 0
        model.conv1.bias[0] = 1
    small = apply_plan(*planned(model))
    assert small.conv2.bias is not None
    assert torch.allclose(small(nets.images()), model(nets.images()), atol=1e-5)
    with torch.no_grad():
        model.conv1.bias[0] = -1
        model.conv2.weight[1] = 0  # constant, but zero
    assert apply_plan(*planned(model)).conv2.bias is None


@pytest.mark.parametrize('build', [nets.VGG, nets.ResNet, nets.FlatteningNet])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_two_threads_fill_the_same_model(build, dtype, monkeypatch):
    graph_module, plan = planned(nets.sparsify(build(), density=0.3).to(dtype))
    alone = nets.state_of(apply_plan(graph_module, plan))
    monkeypatch.setattr(prune, 'WORTH_A_THREAD', 0)
    for _ in range(5):
        together = nets.state_of(apply_plan(graph_module, plan))
        assert nets.same_state(alone, together)
        assert {tensor.dtype for tensor in together.values() if tensor.is_floating_point()} == {dtype}


@pytest.mark.parametrize('name, change', [('keep_outputs', (0, 8)), ('keep_inputs', (0, 1, -1))])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('num_bytes', [0, prune.WORTH_A_THREAD])
def test_a_plan_with_channels_that_do_not_exist_is_refused(name, change, dtype, num_bytes, monkeypatch):
    monkeypatch.setattr(prune, 'WORTH_A_THREAD', num_bytes)
    graph_module, plan = planned(nets.sparsify(nets.VGG()).to(dtype))
    with pytest.raises(IndexError):
        apply_plan(graph_module, RemovalPlan((dataclasses.replace(plan.layers[0], **{name: change}),)))


def test_facts_found_for_the_plan_make_the_same_model():
    graph_module, structure = nets.fused_and_structure(nets.sparsify(nets.ResNet()))
    plan = plan_removal(structure)
    assert plan == plan_removal(structure)
    assert nets.same_state(nets.state_of(apply_plan(graph_module, plan, structure.facts)),
                           nets.state_of(apply_plan(graph_module, plan)))


def test_frozen_layers_stay_frozen():
    model = nets.sparsify(nets.VGG())
    model.layers[0].conv.weight.requires_grad_(False)
    small = apply_plan(*planned(model))
    assert not small.get_submodule('layers.0.conv').weight.requires_grad
    assert small.fc.weight.requires_grad


def test_a_plan_for_another_model_is_refused():
    graph_module, plan = planned(nets.sparsify(nets.VGG()))
    other = capture(nets.VGG(plan=(8, 'M', 12, 17, 'M', 16)).eval())
    with pytest.raises(ValueError, match=r"the plan is for another model: 'layers.3.conv' has \(17, 12\)"):
        apply_plan(other, plan)
    renamed = dataclasses.replace(plan.layers[0], layer='nowhere')
    with pytest.raises(ValueError, match="there is no conv or linear layer 'nowhere'"):
        apply_plan(graph_module, RemovalPlan((renamed,)))


@pytest.mark.parametrize('build', [nets.VGG, nets.ResNet, nets.FlatteningNet])
@pytest.mark.parametrize('density', [0.1, 0.4])
def test_without_a_compiler_the_same_model_is_made(build, density, monkeypatch):
    model = nets.sparsify(build(), density=density)
    graph_module, plan = planned(model)
    small = apply_plan(graph_module, plan)
    monkeypatch.setattr(facts, 'functions_for', lambda dtype: None)
    _, by_numpy = planned(model)
    assert plan.num_removed > 0 and all(
        (own.keep_outputs, own.keep_inputs, own.removed) == (other.keep_outputs, other.keep_inputs, other.removed)
        for own, other in zip(plan.layers, by_numpy.layers, strict=True))
    state, other = nets.state_of(small), nets.state_of(apply_plan(graph_module, by_numpy))
    assert state.keys() == other.keys()
    assert all(torch.allclose(state[name], other[name], rtol=1e-6, atol=1e-7) for name in state)
