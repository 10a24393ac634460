"""Fixtures for the tests of hybrid execution: with the compiled kernels and without."""

from unittest import mock

import pytest

from dnnshifter_ext.sparse import library


@pytest.fixture(params=['compiled', 'scipy'])
def kernels(request, loaded):
    """The tests that ask for it run with the compiled kernels, and as where there is no compiler."""
    if request.param == 'compiled':
        if loaded is None:
            pytest.skip('there is no C compiler')
        yield request.param
    else:
        with mock.patch.object(library, 'load', lambda: None):
            yield request.param


@pytest.fixture
def needs_compiler(loaded):
    if loaded is None:
        pytest.skip('there is no C compiler')
