"""The conversion is exact on real architectures and on generated networks, at resolutions it has not seen."""

import pathlib

import pytest

from dnnshifter_ext.conversion import Conversion, convert
from tests.dnnshifter_ext import architectures, nets
from tests.dnnshifter_ext.equality import EXACT, difference
from tests.dnnshifter_ext.generated import for_networks
from tests.dnnshifter_ext.networks import Network

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

PAGE = (pathlib.Path(__file__).parents[2] / 'docs' / 'architectures.md').read_text().splitlines()

# One of each family, small; `make test-full` takes all of torchvision.
SOME = ['densenet121', 'efficientnet_b0', 'googlenet', 'mnasnet0_5', 'mobilenet_v2', 'mobilenet_v3_small',
        'regnet_y_400mf', 'resnet18', 'shufflenet_v2_x0_5', 'squeezenet1_1']


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in SOME else pytest.mark.full) for name in architectures.CLASSIFICATION])
def test_torchvision(name):
    result = architectures.run(name)
    assert result.verdict == 'exact'
    assert all(each.dependence > 1000 * EXACT for each in result.differences), 'whatever goes in, the same comes out'
    assert result.num_params_converted <= result.num_params
    if name in SOME:
        assert result.num_removed > 0
    assert result.row in PAGE, 'docs/architectures.md is old; its first lines say how it is made'


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=() if name in ('raft_small', 'ssdlite320_mobilenet_v3_large', 'lraspp_mobilenet_v3_large')
                 else pytest.mark.full) for name in architectures.OTHERS])
def test_what_torch_fx_cannot_trace_is_listed_with_the_error(name):
    error = architectures.refusal(name)
    assert '\n' not in error
    listed = [line for line in PAGE if line.startswith(f'* `{name}`')]
    assert listed == ([architectures.refused_row(name, error)] if error else [])


@pytest.mark.parametrize('num_networks', [150, pytest.param(1500, marks=pytest.mark.full)])
def test_generated_networks(num_networks):
    shrinks, depends = [], []

    def check(network):
        conversion, dependence = assert_exact(network)
        shrinks.append(conversion.plan.num_removed > 0)
        depends.append(dependence > 1000 * EXACT)

    for_networks(num_networks, check)
    assert sum(shrinks) > len(shrinks) / 2, 'the networks leave the converter too little to do'
    assert sum(depends) > len(depends) / 2, 'the outputs of too many networks do not depend on the inputs'


def assert_exact(network: Network) -> tuple[Conversion, float]:
    """(the conversion, how much the outputs depend on the inputs), after all that must hold has been checked."""
    model, images = network.build(), network.images()
    state, modes = nets.state_of(model), [module.training for module in model.modules()]
    conversion = convert(model, images[0])
    differences = [difference(model, conversion.model, x) for x in images]
    assert all(each.is_exact for each in differences), differences
    assert conversion.removal.within(EXACT)
    assert nets.same_state(state, nets.state_of(model))
    assert modes == [module.training for module in model.modules()]
    assert all(tensor.is_contiguous() for tensor in conversion.model.state_dict().values())
    assert nets.num_params(conversion.model) <= nets.num_params(conversion.fused)
    assert all(parameter.numel() for parameter in conversion.model.parameters()), 'a layer without channels'
    return conversion, differences[0].dependence
