"""The kit with which tests written for OpenLTH run on ours."""

import os
import unittest

import numpy as np
import pytest
import torch

from open_lth.platforms import platform
from open_lth.testing import test_case
from open_lth.testing.toy_model import InnerProductModel


class Example(test_case.TestCase):
    """Run by the tests below, not collected itself."""

    __test__ = False

    def test_own_root(self):
        assert platform.get_platform().root == self.root and os.listdir(self.root) == []
        assert self.root.endswith('/TESTING') and platform.get_platform().num_workers == 4
        assert platform.get_platform().device_str == 'cpu' and not platform.get_platform().is_parallel
        with open(os.path.join(self.root, 'file'), 'w'):
            pass

    def test_states(self):
        first, second = InnerProductModel(3), InnerProductModel(3)
        self.assertStateEqual(self.get_state(first), self.get_state(second))
        second.layer.weight.data += 1
        self.assertStateAllNotEqual(self.get_state(first), self.get_state(second))
        with self.assertRaises(AssertionError):
            self.assertStateEqual(self.get_state(first), self.get_state(second))


def test_cases_run_on_an_empty_root_of_their_own():
    before = make_marker()
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Example).run(result)
    assert result.testsRun == 2 and not result.failures and not result.errors, result.errors + result.failures
    assert platform._PLATFORM is before, 'restored'
    assert not os.path.exists(os.path.expanduser('~/open_lth_data/TESTING'))


def make_marker():
    platform._PLATFORM = object()
    return platform._PLATFORM


def test_get_state_copies():
    model = InnerProductModel(3)
    state = test_case.TestCase.get_state(model)
    model.layer.weight.data += 1
    assert state['layer.weight'].tolist() == [0, 1, 2] and isinstance(state['layer.weight'], np.ndarray)


def test_main_does_nothing_when_called_from_another_module():
    assert test_case.main() is None


def test_toy_model():
    model = InnerProductModel(4)
    assert model(torch.ones(1, 4)).item() == 6 and model.layer.weight.shape == (4,)
    assert model.prunable_layer_names == ['layer.weight']
    assert model.loss_criterion(torch.tensor([3.]), torch.tensor([1.])).item() == 4
    with pytest.raises(NotImplementedError):
        model.default_hparams()
    with pytest.raises(NotImplementedError):
        _ = model.output_layer_names
