import pytest
import torch
from torch import nn

from dnnshifter_ext.plan import Constants, Removed
from dnnshifter_ext.removal import plan_removal
from tests.dnnshifter_ext import nets


def plan_of(model):
    return plan_removal(nets.fused_and_structure(model)[1])


def pair(biases, **second):
    """Two convolutions, relu between; the first's channels are dead and emit their bias, the last varies."""
    model = nets.Pair(channels=len(biases) + 1, **second).eval()
    with torch.no_grad():
        model.conv1.weight[:-1] = 0
        model.conv1.bias[:-1] = torch.tensor(biases)
    return model


def test_without_padding_constants_are_folded():
    first, second = plan_of(pair([1.0, -1.0, 2.0])).layers
    assert first.removed == (
        Removed('constant zero', (1,)), Removed("constant folded into bias of 'conv2'", (0, 2)))
    assert first.keep_outputs == (3,) and second.keep_inputs == (3,)
    assert second.folded == Constants((0, 2), (1.0, 2.0))
    assert second.carrier is None and second.barrier == 'it feeds the output of the model'
    assert first.emptied == Constants()


def test_with_padding_constants_are_merged_into_the_largest():
    first, second = plan_of(pair([1.0, -1.0, 3.0, 2.0], padding=1)).layers
    assert first.removed == (
        Removed('constant zero', (1,)), Removed("constant merged into carrier channel 2 of 'conv2'", (0, 3)))
    assert first.keep_outputs == (2, 4) and second.keep_inputs == (2, 4)
    assert first.emptied == Constants((2,), (3.0,))
    assert second.merged == Constants((0, 2, 3), (1.0, 3.0, 2.0)) and second.carrier == 2
    assert second.folded == Constants()


def test_a_single_constant_is_kept_because_merging_would_not_pay():
    first, second = plan_of(pair([1.0, -1.0], padding=1)).layers
    assert first.keep_outputs == (0, 2)
    assert second.carrier is None and second.merged == Constants()
    assert first.emptied == Constants((0,), (1.0,))


def test_a_constant_that_only_the_middle_tap_reads_is_folded_in_spite_of_the_padding():
    model = pair([1.0, 2.0], padding=1)
    with torch.no_grad():
        centre = model.conv2.weight[:, 0, 1, 1].clone()
        model.conv2.weight[:, 0] = 0
        model.conv2.weight[:, 0, 1, 1] = centre
    first, second = plan_of(model).layers
    assert first.removed == (Removed("constant folded into bias of 'conv2'", (0,)),)
    assert second.folded == Constants((0,), (1.0,))


def test_padding_modes_that_repeat_the_image_need_no_carrier():
    first, second = plan_of(pair([1.0, 2.0], padding=1, padding_mode='reflect')).layers
    assert first.keep_outputs == (2,) and second.folded == Constants((0, 1), (1.0, 2.0))


def test_unread_channels_go():
    model = pair([1.0, -1.0])
    with torch.no_grad():
        model.conv1.weight[1] = 1
        model.conv2.weight[:, 0] = 0
        model.conv2.weight[:, 1] = -0.0
    first, _ = plan_of(model).layers
    assert first.removed == (Removed('unread', (0, 1)),)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('biases', [[1.0, 2.0], [-1.0, -2.0], [1.0, -2.0]])
def test_a_dead_layer_keeps_one_channel(padding, biases):
    model = pair(biases, padding=padding)
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.bias[-1] = -1
    first, second = plan_of(model).layers
    assert len(first.keep_outputs) == 1 and first.keep_outputs == second.keep_inputs
    assert first.emptied.channels == first.keep_outputs
    # Without padding the reader is constant, and its own emptied weights hold all that the first layer emits.
    all_constant = padding == 0 or max(biases) < 0
    assert (second.emptied.channels == (0, 1, 2, 3)) == all_constant
    assert (second.carrier is None) == (all_constant or biases != [1.0, 2.0])


def test_the_channel_that_stays_of_an_unread_layer_is_empty():
    model = pair([1.0, -1.0])
    with torch.no_grad():
        model.conv1.weight.fill_(1)
        model.conv2.weight.zero_()
    first, second = plan_of(model).layers
    assert first.removed == (Removed('unread', (1, 2)),)
    assert first.emptied == Constants((0,), (0.0,))
    assert second.emptied.channels == (0, 1, 2, 3)


def test_every_channel_is_either_kept_or_removed_for_one_reason():
    for seed in range(10):
        for build in (nets.VGG, nets.ResNet, nets.FlatteningNet, nets.LeNet):
            for layer in plan_of(nets.sparsify(build(), seed, density=0.1)).layers:
                removed = [channel for group in layer.removed for channel in group.channels]
                assert sorted([*layer.keep_outputs, *removed]) == list(range(layer.num_outputs))
                assert layer.keep_outputs and layer.keep_inputs
                assert layer.num_removed == len(removed)
                assert not (removed and layer.barrier)


def test_no_bias_is_added_where_nothing_is_gained():
    model = pair([1.0], padding=1, bias=False)
    with torch.no_grad():  # output 0 of conv2 reads the constant with the middle tap only: constant 1.0 * w
        model.conv2.weight[0] = 0
        model.conv2.weight[0, 0, 1, 1] = 1
    _, second = plan_of(model).layers
    assert second.emptied == Constants() and second.keep_inputs == (0, 1)


def test_plan_is_made_for_all_layers_at_once_and_touches_nothing():
    model = nets.sparsify(nn.Sequential(nets.VGG()))
    before = nets.state_of(model)
    plan = plan_of(model)
    assert [layer.layer for layer in plan.layers] == [
        '0.layers.0.conv', '0.layers.2.conv', '0.layers.3.conv', '0.layers.5.conv', '0.fc']
    assert nets.same_state(before, nets.state_of(model))
