"""Fixtures for the tests of the extension: what is compiled or cached goes into folders of the tests."""

import os
from unittest import mock

from hypothesis import configuration
import pytest

from dnnshifter_ext.layers_in_c import load_loops
from dnnshifter_ext.sparse import library


@pytest.fixture(scope='session', autouse=True)
def loaded(tmp_path_factory):
    """The sparse kernels. All C is compiled before the tests: the first one to use it would print more than others."""
    with mock.patch.dict(os.environ, XDG_CACHE_HOME=str(tmp_path_factory.mktemp('cache'))):
        load_loops()
        return library.load()


@pytest.fixture(scope='session', autouse=True)
def no_hypothesis_folder(tmp_path_factory):
    """What hypothesis caches does not go into the working directory."""
    configuration.set_hypothesis_home_dir(tmp_path_factory.mktemp('hypothesis'))
