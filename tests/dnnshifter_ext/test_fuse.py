import pytest
import torch
from torch import nn

from dnnshifter_ext.fuse import fuse_conv_bn
from dnnshifter_ext.graph import capture
from tests.dnnshifter_ext import nets


def batch_norms(model):
    return [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]


@pytest.mark.parametrize('build', [nets.VGG, nets.ResNet, nets.FlatteningNet])
def test_fused_model_computes_the_same(build):
    model = nets.sparsify(build()).double()
    fused = fuse_conv_bn(capture(model))
    assert not batch_norms(fused)
    assert nets.max_difference(model, fused, nets.images()) < 1e-12


@pytest.mark.parametrize('conv', [
    dict(groups=2, bias=False), dict(dilation=2, padding=2),
    dict(stride=2, padding=1, padding_mode='reflect'), dict(padding='same', padding_mode='circular')])
def test_every_argument_of_the_convolution_survives(conv):
    layer = nn.Conv2d(4, 6, 3, **conv)
    model = nn.Sequential(layer, nn.BatchNorm2d(6, eps=0.1))
    model = nets.sparsify(model, density=1, share_of_dead_filters=0).double()
    fused = fuse_conv_bn(capture(model))
    assert nets.max_difference(model, fused, nets.images(channels=4)) < 1e-12
    new = fused.get_submodule('0')
    for name in ('stride', 'padding', 'dilation', 'groups', 'padding_mode', 'kernel_size'):
        assert getattr(new, name) == getattr(layer, name)
    assert new.bias is not None


def test_other_dimensions_linear_layers_and_norms_without_weights():
    for layer, norm, x in [
            (nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3, affine=False), torch.randn(4, 2, 9)),
            (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3), torch.randn(4, 2, 5, 5, 5)),
            (nn.Linear(5, 3, bias=False), nn.BatchNorm1d(3), torch.randn(4, 5))]:
        model = nn.Sequential(layer, norm)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        model = model.double().eval()
        fused = fuse_conv_bn(capture(model))
        assert not batch_norms(fused)
        assert nets.max_difference(model, fused, x) < 1e-12


def test_arithmetic_in_float64_stored_in_the_own_type():
    model = nets.sparsify(nets.VGG())
    fused = fuse_conv_bn(capture(model))
    block = model.layers[0]
    scale = block.bn.weight.double() / (block.bn.running_var.double() + block.bn.eps).sqrt()
    expected = (block.conv.weight.double() * scale[:, None, None, None]).float()
    # The scale is rounded once, the product again.
    torch.testing.assert_close(fused.get_submodule('layers.0.conv').weight, expected, rtol=2**-23, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_pure(dtype):
    captured = capture(nets.sparsify(nets.VGG()).to(dtype))
    before, code = nets.state_of(captured), captured.code
    fused = fuse_conv_bn(captured)
    assert nets.same_state(before, nets.state_of(captured)) and captured.code == code
    with torch.no_grad():
        for parameter in fused.parameters():
            parameter.zero_()
    assert nets.same_state(before, nets.state_of(captured))


def test_a_norm_that_cannot_be_fused_stays_and_nothing_changes():
    class ReadTwice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    without_statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    first = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    for model in (ReadTwice(), without_statistics, first):
        model = model.eval()
        fused = fuse_conv_bn(capture(model))
        assert len(batch_norms(fused)) == 1
        assert torch.equal(fused(nets.images()), model(nets.images()))
