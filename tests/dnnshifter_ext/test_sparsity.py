"""Hand-computed: what is constant, with which value, and what is read."""

import pytest
import torch
from torch import nn

from dnnshifter_ext.graph import capture
from dnnshifter_ext.links import find_links
from dnnshifter_ext.sparsity import analyse, taps_on_padding


def analysed(model):
    graph_module = capture(model)
    return analyse(graph_module, find_links(graph_module))


def linear(weight, bias=None):
    weight = torch.tensor(weight, dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float32)
    return layer


def test_constants_travel_forward_and_reading_backward():
    found = analysed(nn.Sequential(
        linear([[1, 0], [0, 0], [-0.0, -0.0], [1, 1]], [9, 2, -3, 9]), nn.ReLU(),
        # Row 0 varies; row 1 reads only constants (2 and 0): constant 5 * 2 + 0 + 1; row 2 varies.
        linear([[1, 0, 0, 0], [0, 5, 7, 0], [0, 4, 0, 2]], [0, 1, 0]), nn.ReLU(),
        # Nobody reads row 2 of the layer before, so that nobody needs row 3 of the first.
        linear([[1, 1, 0]], [0])))
    first, second, last = found.values()
    assert first.constant_O.tolist() == [False, True, True, False]
    assert first.bias_O.tolist() == [0, 2, -3, 0]
    assert first.value_O.tolist() == [0, 2, 0, 0]
    assert first.read_O.tolist() == [True, False, False, False]
    assert second.constant_O.tolist() == [False, True, False]
    assert second.bias_O.tolist() == [0, 11, 0]
    assert second.read_O.tolist() == [True, True, False]
    assert last.constant_O.tolist() == [False]
    assert last.read_O.tolist() == [True]


def test_a_dead_layer_makes_all_that_follows_constant():
    found = analysed(nn.Sequential(linear([[0, 0]], [1]), nn.ReLU(), linear([[2], [3]], [1, 0])))
    first, last = found.values()
    assert first.constant_O.all() and last.constant_O.all()
    assert last.bias_O.tolist() == [3, 3]
    assert not first.read_O.any()  # only constants read it


def conv(weight, bias, **arguments):
    """A 1-d convolution; weight is a nested list (O, I, K)."""
    weight = torch.tensor(weight, dtype=torch.float32)
    layer = nn.Conv1d(weight.shape[1], weight.shape[0], weight.shape[2], **arguments)
    layer.weight.data = weight
    layer.bias.data = torch.tensor(bias, dtype=torch.float32)
    return layer


def test_zero_padding_makes_the_reader_of_a_constant_vary_unless_the_tap_stays_inside():
    producer = conv([[[0]], [[0]], [[1]]], [2, -1, 0])  # constants 2 and 0 after the relu; one varies
    weight = [
        [[0, 3, 0], [1, 1, 1], [0, 0, 0]],  # the middle tap never falls on the padding; a zero does no harm
        [[0, 3, 4], [0, 0, 0], [0, 0, 0]],  # the right tap does
        [[0, 0, 0], [0, 0, 0], [0, 1, 0]],  # varies by itself
    ]
    padded = analysed(nn.Sequential(producer, nn.ReLU(), conv(weight, [0.5, 0, 0], padding=1)))['2']
    assert padded.constant_O.tolist() == [True, False, False]
    assert padded.bias_O.tolist() == [6.5, 0, 0]
    for arguments in ({}, {'padding': 1, 'padding_mode': 'replicate'}):
        found = analysed(nn.Sequential(producer, nn.ReLU(), conv(weight, [0.5, 0, 0], **arguments)))['2']
        assert found.constant_O.tolist() == [True, True, False]
        assert found.bias_O.tolist() == [6.5, 14, 0]
    cut = analysed(nn.Sequential(producer, nn.ReLU(), conv(weight, [0.5, 0, 0], padding=1)))['0'].cut_O
    assert cut.tolist() == [True, False, False]


@pytest.mark.parametrize('arguments', [
    dict(kernel_size=3, padding=1), dict(kernel_size=3), dict(kernel_size=5, padding=1),
    dict(kernel_size=4, padding=1),
    dict(kernel_size=3, padding=2, dilation=2), dict(kernel_size=3, padding=1, dilation=2),
    dict(kernel_size=1, padding=1), dict(kernel_size=2, padding=1), dict(kernel_size=3, padding='same'),
dict(kernel_size=3, padding='valid'), dict(kernel_size=3, padding=1, stride=2),
    dict(kernel_size=3, padding=1, padding_mode='circular'), dict(kernel_size=5, padding=2, stride=3),
], ids=str)
def test_taps_on_padding_against_every_position_of_many_sizes(arguments):
    """Oracle: a tap sees padding if, with its weight alone set, an all-ones input gives a zero somewhere."""
    layer = nn.Conv1d(1, 1, bias=False, **arguments)
    seen = torch.zeros(layer.kernel_size[0], dtype=torch.bool)
    for tap in range(len(seen)):
        layer.weight.data.zero_()
        layer.weight.data[0, 0, tap] = 1
        for size in range(6, 24):
            seen[tap] |= bool((layer(torch.ones(1, 1, size)) == 0).any())
    assert taps_on_padding(layer).tolist() == seen.tolist()


def test_taps_of_two_dimensions_are_in_the_order_of_the_weights():
    layer = nn.Conv2d(1, 1, (1, 3), padding=(0, 1))
    assert taps_on_padding(layer).tolist() == [True, False, True]
    layer = nn.Conv2d(1, 1, (3, 2), padding=(1, 0))
    assert taps_on_padding(layer).tolist() == [True, True, False, False, True, True]
    assert taps_on_padding(nn.Linear(3, 4)).tolist() == [False]


def test_values_are_float64():
    weight = [[0.1, 0.1, 0.1]]
    found = analysed(nn.Sequential(linear([[0]] * 3, [0.1, 0.2, 0.3]), linear(weight, [0.7]), linear([[1]])))
    tenth = torch.tensor(0.1).double()
    constants = torch.tensor([0.1, 0.2, 0.3]).double()
    expected = float((tenth * constants).sum() + torch.tensor(0.7).double())
    assert found['1'].bias_O.item() == pytest.approx(expected, abs=1e-15)
    # In float32 the taps would add up to 0.
    cancelling = conv([[[1e9, 1, -1e9]]], [0])
    found = analysed(nn.Sequential(conv([[[0]]], [3]), cancelling, conv([[[1]]], [0])))
    assert found['1'].bias_O.item() == 3
