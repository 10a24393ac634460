"""The extension and the experiments in the engine's registries: for one test, or for as long as it is said."""

import contextlib

import pytest

from dnnshifter_ext.install import install
import experiments.install
from open_lth.cli.runner_registry import DESCRIPTIONS, registered_runners
from open_lth.lottery.branch.registry import registered_branches
from open_lth.pruning.registry import registered_strategies
from open_lth.training.branch.registry import registered_branches as registered_train_branches


@contextlib.contextmanager
def all_installed():
    registries = (registered_runners, DESCRIPTIONS, registered_branches, registered_train_branches,
                  registered_strategies)
    before = [dict.copy(registry) for registry in registries]
    install()
    experiments.install.install()
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def installed():
    with all_installed():
        yield
