"""docs/methods.md: its example runs, and it tells of every method and every option."""

import re

import pytest

from dnnshifter_ext.methods.unstructured.registry import METHODS
from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / 'docs' / 'methods.md').read_text()


def test_the_example_runs():
    [example] = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)
    exec(example, {})


@pytest.mark.parametrize('name', METHODS)
def test_every_method_and_option_is_described(name):
    [section] = re.findall(rf'\n## [^\n]*\b{name}\b.*?(?=\n## )', PAGE, re.DOTALL)
    assert f'--strategy={name}' in section
    assert all(f'`{option}' in section for option in METHODS[name].options)
