"""Branches of additions that are scattered, and readers that gather: smaller, and still the same function."""

import dataclasses

import pytest
import torch
from torch import nn

from dnnshifter_ext import export, index_maps
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.plan import RemovalPlan
from dnnshifter_ext.verify import compare
from tests.dnnshifter_ext import nets

WIDTH = 32


class Residual(nn.Module):
    """Three blocks on one stream; `reread`: the stream is read again after the second addition."""

    def __init__(self, reread=False):
        super().__init__()
        self.reread = reread
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.blocks = nn.ModuleList(nn.Sequential(
            nn.Conv2d(WIDTH, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, WIDTH, 3, padding=1, bias=False),
            nn.BatchNorm2d(WIDTH)) for _ in range(3))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.stem(x)
        first = x.flatten(2)  # shares the memory of the stream
        for block in self.blocks:
            x = torch.relu(block(x) + x)
        if self.reread:
            x = x + first.view(x.shape)
        return self.head(x.mean((2, 3)))


def residual(reread=False, num_live=6):
    """Each block writes `num_live` channels, the others are constant there; each reads `num_live`."""
    torch.manual_seed(0)
    model = nets.sparsify(Residual(reread), density=1, share_of_dead_filters=0)
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            live = torch.arange(WIDTH).roll(-5 * i)[:num_live]
            dead = torch.ones(WIDTH, dtype=torch.bool).index_fill(0, live, False)
            block[3].weight[dead] = 0
            block[0].weight[:, dead] = 0
    return model


def actions(conversion):
    return [node.action for node in conversion.plan.nodes if node.action in ('scatter', 'gather')]


@pytest.mark.parametrize('reread', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_branches_go_without_the_sum(reread, dtype, monkeypatch):
    model = residual(reread).to(dtype)
    conversion = convert(model, nets.images().to(dtype))
    assert actions(conversion).count('scatter') == 3 and 'gather' in actions(conversion)
    tolerance = 1e-12 if dtype is torch.float64 else 1e-5
    for size in (8, 11):
        x = torch.randn(3, 3, size, size, dtype=dtype)
        assert compare(model, conversion.model, x).within(tolerance)
        with torch.no_grad():
            for _ in range(2):  # nothing that is added in place may be left over for the next query
                torch.testing.assert_close(conversion.model(x), model(x), rtol=0, atol=1e-4)
    by_name = {layer.layer: layer for layer in conversion.plan.layers}
    assert all(len(by_name[f'blocks.{i}.3'].keep_outputs) == 6 for i in range(3))
    assert "constant added in 'add_1'" in {removed.reason for removed in by_name['blocks.1.3'].removed}

    monkeypatch.setattr(index_maps, 'NS_PER_CALL', 1e12)
    plain = convert(model, nets.images().to(dtype))
    assert actions(plain) == []
    assert nets.num_params(conversion.model) < 0.6 * nets.num_params(plain.model)


def test_in_place_only_where_nobody_reads_the_stream_again():
    def methods(conversion):
        return [node.target for node in conversion.model.graph.nodes if node.op == 'call_method']

    def functions(conversion):
        return [node.target for node in conversion.model.graph.nodes if node.op == 'call_function']

    alone, shared = convert(residual(), nets.images()), convert(residual(reread=True), nets.images())
    assert methods(alone).count('index_add_') == 3
    # `first` is a view of the stream that the first block adds to: its shift needs a copy.
    assert methods(shared).count('add_') < methods(alone).count('add_')
    assert len(functions(shared)) > len(functions(alone))


def test_nothing_is_scattered_where_it_does_not_pay():
    model = residual(num_live=WIDTH)
    assert actions(convert(model, nets.images())) == []


@pytest.mark.parametrize('round_to', [1, 8])
def test_with_widths_rounded_up(round_to):
    model = residual().double()
    conversion = convert(model, nets.images().double(), round_to=round_to)
    assert conversion.removal.within(1e-12)
    widths = [len(layer.keep_outputs) for layer in conversion.plan.layers if layer.layer.endswith('.3')]
    assert all(width % round_to == 0 for width in widths) and 'scatter' in actions(conversion)


def test_plan_and_model_survive_their_files(tmp_path):
    conversion = convert(residual(), nets.images())
    assert RemovalPlan.from_dict(conversion.plan.to_dict()) == conversion.plan
    export.save(conversion.model, tmp_path / 'model.pth')
    x = nets.images()
    with torch.no_grad():
        assert torch.equal(export.load(tmp_path / 'model.pth')(x), conversion.model(x))


def test_a_converted_model_can_be_converted_again():
    model = residual().double()
    once = convert(model, nets.images().double())
    twice = convert(once.model, nets.images().double())
    assert compare(model, twice.model, nets.images().double()).within(1e-12)


def test_a_branch_that_is_wholly_constant():
    model = residual()
    with torch.no_grad():
        model.blocks[1][3].weight.zero_()
    conversion = convert(model.double(), nets.images().double())
    layer = {layer.layer: layer for layer in conversion.plan.layers}['blocks.1.3']
    assert len(layer.keep_outputs) == 1 and conversion.removal.within(1e-12)
    assert dataclasses.asdict(layer)['emptied']['channels']
