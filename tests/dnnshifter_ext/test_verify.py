import pytest
import torch
from torch import nn

from dnnshifter_ext.verify import Comparison, compare
from tests.dnnshifter_ext import nets


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


def test_hand_computed():
    x = torch.tensor([[1.0, 3.0], [2.0, -2.0], [0.0, 0.5]])
    found = compare(Scaled(1.0), Scaled(torch.tensor([1.0, 0.0])), x)
    assert found == Comparison(max_abs_difference=3.0, output_range=5.0, max_abs_output=3.0,
                               changed_predictions=2, num_predictions=3)


def test_within_a_share_of_the_range_and_never_with_nan():
    found = compare(Scaled(1.0), Scaled(1.01), torch.tensor([[0.0, 100.0]]))
    assert found.within(0.011) and not found.within(0.009)
    assert not compare(Scaled(1.0), Scaled(float('nan')), torch.ones(1, 2)).within(1e9)
    assert not compare(Scaled(float('nan')), Scaled(float('nan')), torch.ones(1, 2)).within(1e9)
    equal_outputs = compare(Scaled(1.0), Scaled(1 + 1e-7), torch.ones(1, 2))
    assert equal_outputs.output_range == 0 and equal_outputs.within(1e-6) and not equal_outputs.within(1e-8)


def test_float64_arithmetic():
    class ThereAndBack(nn.Module):
        def forward(self, x):
            return (x + 2.0**30) - 2.0**30  # float32 loses all digits of x

    x = torch.tensor([[1.0, 3.0]]) / 2**10
    assert ThereAndBack()(x).abs().max() == 0
    assert compare(Scaled(1.0), ThereAndBack(), x).max_abs_difference == 0


def test_works_on_copies():
    first, second = nets.VGG().train(), nets.VGG().train()
    before = nets.state_of(first)
    assert compare(first, second, nets.images()).max_abs_difference > 0
    assert first.training and second.training and nets.same_state(before, nets.state_of(first))


def test_several_inputs_and_outputs():
    class Two(nn.Module):
        def __init__(self, offset):
            super().__init__()
            self.offset = offset

        def forward(self, x, y):
            return {'sum': x + y, 'others': (x, [y + self.offset])}

    found = compare(Two(0.0), Two(0.25), (torch.ones(2, 3), torch.zeros(2, 3)))
    assert found.max_abs_difference == 0.25 and found.num_predictions == 6


def test_a_model_that_cannot_run_on_the_inputs_is_one_line():
    with pytest.raises(ValueError, match=r'LeNet: cannot run on inputs of shape \(4, 3, 7, 7\): .') as caught:
        compare(nets.LeNet(), nets.LeNet(), nets.images(7))
    assert '\n' not in str(caught.value)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match='different shapes'):
        compare(nets.LeNet(), nets.LeNet(outputs=9), nets.images(6, 1))
