"""Golden numbers and oracles are the CPU's, whatever else a machine has."""

import os
from unittest import mock

import pytest
import torch


@pytest.fixture(scope='session', autouse=True)
def on_the_cpu():
    """Hides GPUs from this process and from those it starts."""

    with (mock.patch.object(torch.cuda, 'is_available', lambda: False),
          mock.patch.dict(os.environ, CUDA_VISIBLE_DEVICES='')):
        yield
