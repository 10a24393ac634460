import pytest
import torch
from torch import nn

from dnnshifter_ext.flow import analyse, collapsed_at
from tests.dnnshifter_ext import nets
from tests.dnnshifter_ext.test_architectures import Generated, make_sparse


def find_collapse(model):
    return collapsed_at(analyse(*nets.fused_and_shapes(model)))


@pytest.mark.parametrize('share_of_dead_filters', [0.3, 0.9])
def test_a_collapse_is_only_reported_where_the_outputs_never_change(share_of_dead_filters):
    num_collapsed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = make_sparse(Generated(seed), generator, 0.5, share_of_dead_filters).float()
        if find_collapse(model):
            num_collapsed += 1
            with torch.no_grad():
                outputs = model(nets.images(16))
            assert all((y == y[:1]).all() for y in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))
    assert 0 < num_collapsed < 20 or share_of_dead_filters < 0.5


def test_a_collapse_behind_zero_padding_is_seen():
    """What the padding makes vary, from the border to the middle, does not vary with the input."""
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    assert find_collapse(model) == []
    model[1].weight.data.zero_()
    assert find_collapse(model) == ['1']
    model[0].weight.data.zero_()
    assert find_collapse(model) == ['0']


def test_a_collapse_to_the_constant_channel_of_a_live_layer_is_seen():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))
    model[0].weight.data[0] = 0
    assert find_collapse(model) == []
    model[1].weight.data[:, 1:] = 0
    assert find_collapse(model) == ['1']
