"""Fixtures for the tests of the converter."""

from hypothesis import configuration
import pytest


@pytest.fixture(scope='session', autouse=True)
def no_hypothesis_folder(tmp_path_factory):
    """What hypothesis caches does not go into the working directory."""
    configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp('hypothesis'))
