from dataclasses import replace

import pytest
from torch import nn

from dnnshifter_ext.flow import analyse, collapsed_at
from tests.dnnshifter_ext import nets
from tests.dnnshifter_ext.equality import difference
from tests.dnnshifter_ext.generated import for_networks

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


def find_collapse(model, x=None):
    return collapsed_at(analyse(nets.fused_and_structure(model, x)[1]))


@pytest.mark.parametrize('dead_filters', [0.3, 0.9])
def test_a_collapse_is_only_reported_where_the_outputs_never_change(dead_filters):
    collapsed = []

    def check(network):
        model = replace(network, sparsity=replace(network.sparsity, dead_filters=dead_filters)).build()
        [x, _] = network.images()
        collapsed.append(bool(find_collapse(model, x)))
        assert not collapsed[-1] or difference(model, model, x).dependence < 1e-12

    for_networks(30, check)
    assert 0 < sum(collapsed) < len(collapsed) or dead_filters < 0.5


def test_a_collapse_behind_zero_padding_is_seen():
    """What the padding makes vary, from the border to the middle, does not vary with the input."""
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).eval()
    assert find_collapse(model) == []
    model[1].weight.data.zero_()
    assert find_collapse(model) == ['1']
    model[0].weight.data.zero_()
    assert find_collapse(model) == ['0']


def test_a_collapse_to_the_constant_channel_of_a_live_layer_is_seen():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))).eval()
    model[0].weight.data[0] = 0
    assert find_collapse(model) == []
    model[1].weight.data[:, 1:] = 0
    assert find_collapse(model) == ['1']
