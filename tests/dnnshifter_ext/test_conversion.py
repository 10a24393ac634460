"""The claim of the converter, attacked with random models: the smaller model computes the same."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
import torchvision

import dnnshifter_ext
from dnnshifter_ext import conversion as conversion_module
from dnnshifter_ext import facts
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.fuse import scales_and_shifts
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.verify import compare
from tests import helpers
from tests.dnnshifter_ext import nets

EXACT = 1e-11  # of the output range, for models in float64


def assert_exact(model, x, tolerance=EXACT):
    """Converts the model in float64 and checks the outputs, the size and the input; the conversion."""
    model = model.double().eval()
    before = nets.state_of(model)
    conversion = convert(model, x.double())
    report = compare(model, conversion.model, x)
    assert report.within(tolerance), report
    assert report.changed_predictions == 0
    assert nets.num_params(conversion.model) <= nets.num_params(conversion.fused)
    assert nets.same_state(before, nets.state_of(model))
    assert all(layer.keep_outputs and layer.keep_inputs for layer in conversion.plan.layers)
    return conversion


BUILDS = {
    'lenet': (nets.LeNet, nets.images(6, 1)),
    'vgg': (nets.VGG, nets.images(8)),
    'flattening': (nets.FlatteningNet, nets.images(8)),
    'flattening sigmoid': (lambda: nets.FlatteningNet(nn.Sigmoid), nets.images(8)),
    'flattening leaky': (lambda: nets.FlatteningNet(nn.LeakyReLU), nets.images(8)),
    'flattening prelu': (lambda: nets.FlatteningNet(nn.PReLU), nets.images(8)),
    'resnet': (nets.ResNet, nets.images(8)),
}


@pytest.mark.parametrize('name', BUILDS)
@pytest.mark.parametrize('density', [0.5, 0.1, 0.02])
def test_random_models_stay_exact_and_shrink(name, density):
    build, x = BUILDS[name]
    num_removed = 0
    for seed in range(4):
        torch.manual_seed(seed)
        num_removed += assert_exact(nets.sparsify(build(), seed, density), x).plan.num_removed
    assert num_removed > 0


SECOND_CONVS = [
    dict(), dict(padding=1), dict(padding=(0, 1)), dict(padding=2), dict(padding='same'),
    dict(padding='valid'), dict(padding=1, stride=2), dict(padding=1, dilation=2),
    dict(padding=1, bias=False), dict(bias=False),
    dict(padding=1, padding_mode='reflect'), dict(padding=1, padding_mode='circular', bias=False),
    dict(kernel_size=1, padding=1), dict(kernel_size=(3, 2), padding=(1, 0)), dict(kernel_size=1),
    dict(groups=2),
]


@pytest.mark.parametrize('second', SECOND_CONVS, ids=str)
@pytest.mark.parametrize(
    'activation', [F.relu, torch.tanh, F.gelu, lambda x: F.hardtanh(x, -0.5, 0.5), torch.sigmoid],
    ids=['relu', 'tanh', 'gelu', 'hardtanh', 'sigmoid'])
def test_constants_through_every_kind_of_convolution(second, activation):
    for seed in range(2):
        pair = nets.Pair(activation=activation, **second)
        model = nets.sparsify(pair, seed, density=0.5, share_of_dead_filters=0.5)
        conversion = assert_exact(model, nets.images(8))
        # Exact at every resolution, not only at that of the example.
        for size in (5, 12):
            assert compare(model, conversion.model, nets.images(size)).within(EXACT)


@pytest.mark.parametrize('resolution', [8, 16, 40])
def test_constant_channel_through_padded_conv_is_exact_at_another_resolution(resolution):
    model = nets.sparsify(nets.VGG(plan=(8, 12, 'M', 16, 16)), seed=3, density=0.1).double()
    conversion = convert(model, nets.images(8))
    assert any(layer.carrier is not None for layer in conversion.plan.layers)
    assert compare(model, conversion.model, nets.images(resolution)).within(EXACT)


def test_float32_differs_by_no_more_than_the_rounding_of_the_weights():
    for seed in range(5):
        model = nets.sparsify(nets.VGG(), seed, density=0.1)
        assert convert(model, nets.images()).report.within(1e-6)


@pytest.mark.parametrize('name', BUILDS)
def test_converting_again_removes_nothing_more(name):
    build, x = BUILDS[name]
    for seed in range(4):
        once = assert_exact(nets.sparsify(build(), seed, density=0.05), x)
        twice = assert_exact(once.model, x)
        assert twice.plan.num_removed == 0
        assert nets.num_params(twice.model) == nets.num_params(once.model)


@pytest.mark.parametrize('build', [
    lambda: torchvision.models.resnet18(weights=None, num_classes=10),
    lambda: torchvision.models.resnet50(weights=None, num_classes=10, width_per_group=16),
], ids=['basic block', 'bottleneck'])
def test_skip_connections_and_downsampling_layers_take_part(build):
    model = nets.sparsify(build(), density=0.01)
    conversion = assert_exact(model, nets.images(32, num=2))
    narrowed = {layer.layer for layer in conversion.plan.layers if layer.num_removed}
    assert {'layer2.0.downsample.0', 'layer4.1.conv1'} <= narrowed
    assert nets.num_params(conversion.model) < 0.7 * nets.num_params(conversion.fused)


@pytest.mark.parametrize('name', BUILDS)
def test_each_layer_dead_in_turn(name):
    build, x = BUILDS[name]
    layers = [path for path, module in build().named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    for path in layers:
        model = nets.sparsify(build(), density=0.5, share_of_dead_filters=0)
        model.get_submodule(path).weight.data.zero_()
        assert_exact(model, x)


def test_a_weight_that_is_read_elsewhere_too():
    class Tied(nets.Pair):
        def forward(self, x):
            return super().forward(x) + F.conv2d(x, self.conv1.weight).mean((1, 2, 3), keepdim=True)

    for seed in range(3):
        assert_exact(nets.sparsify(Tied(), seed, share_of_dead_filters=0.5), nets.images())


@pytest.mark.parametrize('name', BUILDS)
def test_everything_dead(name):
    build, x = BUILDS[name]
    conversion = assert_exact(nets.sparsify(build(), density=0), x)
    chain = [layer for layer in conversion.plan.layers if not layer.barrier]
    assert all(len(layer.keep_outputs) == 1 for layer in chain)
    assert assert_exact(conversion.model, x).plan.num_removed == 0


def test_a_dense_model_is_left_as_it_is():
    conversion = assert_exact(nets.sparsify(nets.VGG(), density=1, share_of_dead_filters=0), nets.images())
    assert conversion.plan.num_removed == 0
    assert nets.num_params(conversion.model) == nets.num_params(conversion.fused)


def test_relu_of_the_shift_is_not_lost():
    """The defect of the authors' code: a filter of zeros emits relu(beta) after its batch norm."""
    model = nets.sparsify(nets.VGG(), density=1, share_of_dead_filters=0).double()
    with torch.no_grad():
        model.layers[0].conv.weight[:5] = 0
        model.layers[0].bn.bias[:5] = 1
        model.layers[0].bn.running_mean[:5] = 0
        model.layers[0].bn.weight[:5] = 0
    conversion = assert_exact(model, nets.images())
    assert conversion.plan.layers[0].num_removed == 4
    assert conversion.plan.layers[1].carrier is not None


def test_golden_vgg_16_keeps_its_logits():
    """The authors' tool removes 256 + ... filters of this model and changes its logits by 0.43."""
    from open_lth.foundations.hparams import ModelHparams
    from open_lth.models import registry

    golden = helpers.load_golden('fork_dnnshifter_vgg')
    torch.manual_seed(0)
    model = registry.get(ModelHparams('cifar_vgg_16', 'kaiming_normal', 'uniform'))
    generator = torch.Generator().manual_seed(1)
    step = 2
    for name, tensor in model.state_dict().items():
        if name.endswith(('running_mean', 'bn.bias')):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.5)
        elif name.endswith('running_var'):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif name.endswith('conv.weight'):
            tensor[::step] = 0
            step = (step - 1) % 4 + 2
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    model.eval()
    expected = torch.tensor(golden['original_logits'])
    conversion = convert(model, x)
    with torch.no_grad():
        assert torch.allclose(model(x), expected, rtol=0, atol=1e-5)
        assert torch.allclose(conversion.model(x), expected, rtol=0, atol=1e-5)
    assert not torch.allclose(torch.tensor(golden['pruned_logits']), expected, rtol=0, atol=0.4)
    # As many filters go as the authors remove, less one carrier in each layer whose reader pads.
    removed = {layer.layer.split('.')[1]: layer.num_removed
               for layer in conversion.plan.layers if not layer.barrier}
    counts = golden['number_of_filters_removed_per_layer_index']
    assert removed == {index: count - (index != '16') for index, count in counts.items()}


@pytest.mark.parametrize('dtypes', [(torch.float32, torch.float64), (torch.float32,), (torch.float64,)])
def test_a_wrong_model_is_never_returned(monkeypatch, dtypes):
    """The error is in the model that is handed out, in the proof, or in both."""
    def forgetful(graph_module, plan, facts=None):
        small = apply_plan(graph_module, plan, facts)
        if small.fc.bias.dtype in dtypes:
            small.fc.bias.data += 0.1
        return small

    monkeypatch.setattr(conversion_module, 'apply_plan', forgetful)
    with pytest.raises(ValueError, match='VGG: the converted model differs by .* it is thrown away'):
        convert(nets.sparsify(nets.VGG()), nets.images())


def ill_conditioned():
    """A batch norm whose variance died and that magnifies the rounding of a large, almost constant input."""
    model = nets.sparsify(nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), density=0.7)
    with torch.no_grad():
        model[0].weight *= 1e-6
        model[0].bias += 1e4
        model[3].running_mean[:] = model[2](torch.relu(model[0](nets.images()))).mean((0, 2, 3))
        model[3].running_var[:] = 0
    return model


def test_an_ill_conditioned_model_is_converted_as_well_as_fusion_rounds_it():
    conversion = convert(ill_conditioned(), nets.images())
    assert not conversion.fusion.within(1e-4) and not conversion.report.within(1e-4)
    assert conversion.report.max_abs_difference <= 2 * conversion.fusion.max_abs_difference
    assert conversion.removal.within(1e-8) and conversion.plan.num_removed > 0


@pytest.mark.parametrize('build', [lambda: nets.sparsify(nets.VGG()), ill_conditioned])
def test_a_fusion_that_changes_the_model_is_not_returned_either(build, monkeypatch):
    def shifted(norms):
        return {path: (scale_C, shift_C + 1e-3) for path, (scale_C, shift_C) in scales_and_shifts(norms).items()}

    monkeypatch.setattr(facts, 'scales_and_shifts', shifted)
    with pytest.raises(ValueError, match='it is thrown away'):
        convert(build(), nets.images())


def test_a_model_in_training_mode_is_refused_by_the_name_of_its_batch_norm():
    model = nets.sparsify(nets.VGG())
    model.layers[3].bn.train()
    with pytest.raises(ValueError, match=r"'layers.3.bn' \(BatchNorm2d\) is in training mode; call model.eval\(\)"):
        convert(model, nets.images())


def test_a_batch_norm_behind_a_layer_that_is_a_barrier_is_fused_too():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2, self.bn = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            x = self.conv1(x)
            y = x.relu_()
            return y + self.bn(self.conv2(x))

    conversion = assert_exact(nets.sparsify(Overwritten()), nets.images())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in conversion.model.modules())


def test_denormal_weights_are_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[1, 2, 0, 1] = 1e-42
    conversion = convert(model, nets.images())
    assert conversion.plan.layers[0].keep_outputs == (1,)


def test_random_generators_are_not_touched():
    model = nets.sparsify(nets.VGG())
    state = torch.get_rng_state()
    convert(model, nets.images())
    assert torch.equal(state, torch.get_rng_state())


def test_public_names():
    conversion = dnnshifter_ext.convert(nets.sparsify(nets.LeNet()), nets.images(6, 1))
    assert isinstance(conversion, dnnshifter_ext.Conversion)
    assert isinstance(conversion.plan, dnnshifter_ext.RemovalPlan)
    assert isinstance(conversion.report, dnnshifter_ext.Comparison)
    assert min(conversion.capture_time_ms, conversion.analysis_time_ms, conversion.rebuilding_time_ms,
               conversion.verifying_time_ms) > 0
    assert set(dnnshifter_ext.__all__) <= set(dir(dnnshifter_ext))
    assert all(getattr(dnnshifter_ext, name) is not None for name in dnnshifter_ext.__all__)
    with pytest.raises(AttributeError, match='no attribute'):
        _ = dnnshifter_ext.nothing
