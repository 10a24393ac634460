"""A unittest base class that gives each test an empty root of its own."""

from dataclasses import dataclass
import os
import shutil
import unittest

import numpy as np

from open_lth.platforms import local, platform


@dataclass
class Platform(local.Platform):
    """The local platform on the CPU, with its runs in TESTING below the usual root."""

    def __post_init__(self):
        super().__post_init__()
        self.root = os.path.join(self.root, 'TESTING')

    @property
    def device_str(self):
        return 'cpu'

    @property
    def is_parallel(self):
        return False


class TestCase(unittest.TestCase):
    def setUp(self):
        self._saved_platform = platform._PLATFORM
        platform._PLATFORM = Platform(num_workers=4)
        self.root = platform._PLATFORM.root
        self._remove_root()
        os.makedirs(self.root)

    def tearDown(self):
        self._remove_root()
        platform._PLATFORM = self._saved_platform

    def _remove_root(self):
        shutil.rmtree(self.root, ignore_errors=True)

    @staticmethod
    def get_state(model):
        """The state dict as numpy copies."""
        return {name: tensor.clone().detach().cpu().numpy() for name, tensor in model.state_dict().items()}

    def assertStateEqual(self, state1, state2):
        self.assertEqual(set(state1), set(state2))
        for name in state1:
            self.assertTrue(np.array_equal(state1[name], state2[name]), name)

    def assertStateAllNotEqual(self, state1, state2):
        self.assertEqual(set(state1), set(state2))
        for name in state1:
            self.assertFalse(np.array_equal(state1[name], state2[name]), name)


def main():
    """Does nothing: tests are started by a test runner."""
