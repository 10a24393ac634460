import pytest
import torch
from torch import nn
import torchvision

from dnnshifter_ext.costs import num_flops, peak_memory_bytes, size_bytes
from tests.dnnshifter_ext import nets


def test_size_is_that_of_parameters_and_buffers():
    assert size_bytes(nets.Pair()) == 4 * (6 * 28 + 4 * 55)
    assert size_bytes(nn.BatchNorm2d(5)) == 4 * 20 + 8
    assert size_bytes(nets.Pair().half()) == 2 * (6 * 28 + 4 * 55)


def test_flops_are_two_per_multiply_add():
    assert num_flops(nn.Linear(5, 3), torch.zeros(7, 5)) == 2 * 7 * 5 * 3
    # 6 filters of 3x3x3 at 8x8 places, then 4 of 6x3x3 at 6x6.
    assert num_flops(nets.Pair(), nets.images(num=1)) == 2 * (6 * 27 * 64 + 4 * 54 * 36)
    assert num_flops(nets.Pair(), nets.images(num=3)) == 3 * num_flops(nets.Pair(), nets.images(num=1))
    assert num_flops(nn.Conv2d(6, 6, 3, groups=3), torch.zeros(1, 6, 3, 3)) == 2 * 6 * 2 * 9


def test_flops_of_a_zero_count_and_batch_norms_do_not():
    with_norm = nets.VGG(plan=(8,))
    bare = nets.VGG(plan=(8,))
    bare.layers[0].bn = nn.Identity()
    nn.init.zeros_(with_norm.fc.weight)
    assert num_flops(with_norm, nets.images()) == num_flops(bare, nets.images())
    assert with_norm.training and with_norm.layers[0].bn.num_batches_tracked == 0


def test_flops_of_attention_are_counted():
    """Its fast path on the CPU has operations that the counter does not know."""
    length, width = 7, 16
    layer = nn.TransformerEncoderLayer(width, 2, dim_feedforward=32, batch_first=True).eval()
    projections, attention, hidden = 4 * width * width, 2 * length * width, 2 * width * 32
    assert num_flops(layer, torch.zeros(1, length, width)) == 2 * length * (projections + attention + hidden)


def test_flops_of_a_known_architecture():
    """1.81 G multiply-adds, as torchvision's own table of ResNet-18 says."""
    flops = num_flops(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224))
    assert flops / 2e9 == pytest.approx(
        torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta['_ops'], abs=0.01)


def test_peak_memory_counts_what_is_alive_at_once():
    class Chain(nn.Module):
        """100 floats in; 100, 50, 25 floats after: the peak is at the first step."""

        def forward(self, x):
            return torch.tanh(torch.tanh(x)[:, ::2].contiguous())[:, ::2].contiguous()

    assert peak_memory_bytes(Chain(), torch.zeros(1, 100)) == 4 * (100 + 100)

    class Kept(nn.Module):
        def forward(self, x):
            first = torch.tanh(x)
            second = torch.tanh(first)
            return second + x

    assert peak_memory_bytes(Kept(), torch.zeros(1, 100)) == 4 * 300

    class Views(nn.Module):
        """Views and in-place operations take no room of their own."""

        def forward(self, x):
            return x.view(-1).relu_().view(10, 10)

    assert peak_memory_bytes(Views(), torch.zeros(1, 100)) == 4 * 100
    model = nn.Linear(100, 10)
    assert peak_memory_bytes(model, torch.zeros(1, 100)) == 4 * (1010 + 100 + 10)


def test_peak_memory_falls_with_the_channels():
    small, large = nets.VGG(plan=(8, 8)), nets.VGG(plan=(32, 32))
    x = nets.images(16)
    assert peak_memory_bytes(small, x) < peak_memory_bytes(large, x) / 3
