import pytest
import torch
from torch import nn
from torch.nn import functional as F
import torchvision

from dnnshifter_ext.graph import capture
from dnnshifter_ext.links import Link, find_barriers, find_links, push_constants
from tests.dnnshifter_ext import nets


def links_of(model):
    return [(link.producer, link.reader, link.features_per_channel) for link in find_links(capture(model))]


def barriers_of(model):
    return {barrier.layer: barrier.reason for barrier in find_barriers(capture(model))}


def by_name(argument, cases):
    return pytest.mark.parametrize(argument, cases, ids=[f'case{number}' for number in range(len(cases))])


class Custom(nn.Module):
    """Two layers around a function."""

    def __init__(self, between, first=None, second=None):
        super().__init__()
        self.first = first or nn.Conv2d(3, 4, 3)
        self.second = second or nn.Conv2d(4, 2, 3)
        self.between = between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def test_modules_made_on_the_spot_are_traced_through():
    class OnTheSpot(nets.Pair):
        def forward(self, x):
            return self.conv2(nn.AvgPool2d(2)(nn.ReLU()(self.conv1(x))))

    assert links_of(OnTheSpot()) == [('conv1', 'conv2', 1)]


def test_links_of_a_chain():
    assert links_of(nets.LeNet()) == [('fc_layers.0', 'fc_layers.1', 1), ('fc_layers.1', 'fc', 1)]
    assert barriers_of(nets.LeNet()) == {'fc': 'it feeds the output of the model'}
    # The batch norms are barriers until they are fused.
    assert links_of(nets.VGG()) == []
    assert "'layers_0_bn' (BatchNorm2d)" in barriers_of(nets.VGG())['layers.0.conv']


def test_flatten_gives_each_channel_a_block_of_features():
    model = nets.FlatteningNet()
    model.features[4] = nn.Identity()
    assert links_of(model) == [('features.0', 'features.3', 1), ('features.3', 'classifier.2', 4),
                               ('classifier.2', 'classifier.4', 1)]


@by_name('flatten', [
    lambda x: x.view(x.size(0), -1),
    lambda x: x.view(x.shape[0], -1),
    lambda x: x.reshape((x.size()[0], -1)),
    lambda x: x.flatten(1),
    lambda x: torch.flatten(x, start_dim=1),
    lambda x: torch.reshape(x, (x.size(0), -1)),
])
def test_every_spelling_of_flatten(flatten):
    assert links_of(Custom(flatten, second=nn.Linear(16, 3))) == [('first', 'second', 4)]


@by_name('between', [
    F.relu, torch.relu, lambda x: x.relu(), lambda x: F.relu(x, inplace=True), lambda x: F.relu(input=x),
    F.gelu,
    lambda x: F.leaky_relu(x, 0.3), lambda x: F.max_pool2d(x, 3, 2, 1), lambda x: F.avg_pool2d(x, x.size(3)),
    lambda x: F.avg_pool2d(x, 2, padding=1, count_include_pad=False), lambda x: F.adaptive_max_pool2d(x, 3),
    lambda x: F.dropout(x, training=False), nn.AvgPool2d(2), nn.MaxPool2d(3, padding=1), nn.PReLU(),
    nn.Dropout2d(), nn.Sequential(), nn.Identity(), nn.AdaptiveAvgPool2d(4),
])
def test_operations_that_channels_pass_through(between):
    assert links_of(Custom(between)) == [('first', 'second', 1)]


@by_name('between', [
    lambda x: x + 1, lambda x: torch.roll(x, 1, 1), lambda x: torch.cat([x, x], 1)[:, :4], lambda x: x * x,
    lambda x: F.leaky_relu(x, x.size(2)), lambda x: F.softmax(x, 1), lambda x: F.dropout(x, training=True),
    lambda x: F.avg_pool2d(x, 2, padding=1), lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    lambda x: F.max_pool2d(x, 2, return_indices=True)[0], lambda x: x.view(x.size(0), 4, -1),
    lambda x: x.transpose(2, 3), lambda x: x.permute(0, 1, 3, 2), nn.AvgPool2d(2, padding=1), nn.PReLU(4),
    nn.MaxPool3d((1, 2, 2)), nn.Softmax(1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4),
    nn.Conv2d(4, 4, 3, groups=4), nn.ConvTranspose2d(4, 4, 3),
])
def test_operations_that_stop_the_channels_are_named(between):
    model = Custom(between)
    assert ('first', 'second', 1) not in links_of(model)
    assert barriers_of(model)['first'].startswith(("its channels reach '", "its output '"))


def test_a_fixed_number_of_features_is_a_barrier():
    model = Custom(lambda x: x.view(-1, 16), second=nn.Linear(16, 3))
    assert links_of(model) == []


def test_several_readers_are_named():
    class Forked(nets.Pair):
        def forward(self, x):
            x = self.conv1(x)
            return self.conv2(F.relu(x)) + x.mean()

    assert barriers_of(Forked())['conv1'] == "its output 'conv1' is read by relu, mean"


def test_a_size_that_counts_channels_is_a_reader():
    assert links_of(Custom(lambda x: F.avg_pool2d(x, x.size(2)))) == [('first', 'second', 1)]
    assert links_of(Custom(lambda x: F.avg_pool2d(x, x.size(1)))) == []
    assert links_of(Custom(lambda x: F.avg_pool2d(x, x.shape[1]))) == []
    linear = dict(first=nn.Linear(5, 4), second=nn.Linear(4, 2))
    assert links_of(Custom(lambda x: x.relu(), **linear)) == [('first', 'second', 1)]
    assert links_of(Custom(lambda x: F.dropout(x, x.size(2), training=False), **linear)) == []
    assert links_of(Custom(lambda x: x.view(x.size(0), x.size(1), x.size(2), x.size(3)))) == []


def test_shared_grouped_and_subclassed_layers_are_barriers():
    class Twice(nets.Pair):
        def forward(self, x):
            return self.conv2(self.conv1(self.conv1(x)))

    model = Twice(channels=3)
    assert links_of(model) == []
    assert barriers_of(model)['conv1'] == 'it is shared or called more than once'
    assert barriers_of(nets.Pair(groups=2))['conv2'] == 'it is a grouped convolution'

    class Odd(nn.Conv2d):
        __module__ = 'torch.nn.odd'  # a leaf for torch.fx

        def forward(self, x):
            return super().forward(x) + 1

    assert links_of(Custom(F.relu, second=Odd(4, 2, 3))) == []


def test_a_weight_that_is_read_elsewhere_is_a_barrier():
    class Tied(nets.Pair):
        def forward(self, x):
            return super().forward(x) + F.conv2d(x, self.conv1.weight).mean()

    assert links_of(Tied()) == []


def test_a_linear_layer_on_images_is_not_joined():
    # Without a flatten a linear layer acts on the width, not on the channels.
    assert links_of(Custom(nn.AdaptiveAvgPool2d(4), second=nn.Linear(4, 2))) == []
    # Features of a linear layer are its last dimension: a flatten would mix them with others.
    assert links_of(Custom(nn.Flatten(), first=nn.Linear(5, 4), second=nn.Linear(8, 2))) == []
    assert links_of(Custom(nn.AvgPool1d(2), first=nn.Linear(5, 4), second=nn.Linear(2, 2))) == []


def test_inner_channels_of_residual_blocks():
    from dnnshifter_ext.fuse import fuse_conv_bn

    basic = fuse_conv_bn(capture(torchvision.models.resnet18(weights=None)))
    assert len(find_links(basic)) == 8
    assert all((link.producer[-5:], link.reader[-5:]) == ('conv1', 'conv2') for link in find_links(basic))
    bottleneck = fuse_conv_bn(capture(torchvision.models.resnet50(weights=None)))
    assert len(find_links(bottleneck)) == 32
    barriers = {barrier.layer: barrier.reason for barrier in find_barriers(bottleneck)}
    assert "(add)" in barriers['layer1.0.conv3'] and "(add)" in barriers['layer1.0.downsample.0']


def test_push_constants_through_activations_and_pools():
    model = capture(Custom(nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.MaxPool2d(2), nn.Sigmoid())))
    [link] = find_links(model)
    assert isinstance(link, Link)
    values = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
    pushed = push_constants(model, link, values)
    expected = torch.sigmoid(torch.tensor([-1.0, 0.0, 3.0], dtype=torch.float64))
    assert torch.allclose(pushed, expected, rtol=0, atol=1e-15)
    assert values.tolist() == [-2.0, 0.0, 3.0]
