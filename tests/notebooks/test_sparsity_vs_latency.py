"""The notebook runs from start to end on a tiny run, and its committed outputs are those of its code."""

import re

import nbclient
import nbformat
import pytest

from tests import helpers
from tests.dnnshifter_ext.test_commands import installed, lottery  # noqa: F401 (a fixture)

PATH = helpers.REPOSITORY / 'notebooks' / 'sparsity_vs_latency.ipynb'


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def outputs(notebook, kind):
    """All of one kind, as 'text/plain' or 'image/png'; what is printed counts as text."""
    return [output.text if output.output_type == 'stream' else output.data[kind]
            for cell in notebook.cells if cell.cell_type == 'code' for output in cell.outputs
            if (output.output_type == 'stream' and kind == 'text/plain') or kind in output.get('data', ())]


def test_it_runs_from_start_to_end(notebook, root, monkeypatch):
    lottery(root, '--levels=2', '--pruning_fraction=0.9')
    monkeypatch.setenv('DNNSHIFTER_RUN', str(root))
    monkeypatch.setenv('IPYTHONDIR', str(root))
    monkeypatch.delenv('PYTHONPATH', raising=False)
    committed = outputs(notebook, 'text/plain')
    nbclient.NotebookClient(notebook, timeout=120, resources={'metadata': {'path': PATH.parent}}).execute()
    shown = outputs(notebook, 'text/plain')
    [run] = root.glob('*/replicate_1')
    assert shown[0] == f'{run.parent.name}/replicate_1\n' and len(shown) == len(committed)
    assert 'Search efficiency: ' in shown[1] and ' -> ' in shown[-2]  # something was removed
    assert len(outputs(notebook, 'image/png')) == 3


def test_its_outputs_are_committed_whole_and_in_order(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(outputs(notebook, 'image/png')) == 3
    assert not any(output.output_type == 'error' or output.get('name') == 'stderr'
                   for cell in cells for output in cell.outputs)
    assert not re.search(r'(^|[\s\'"])/\w+/', ''.join(outputs(notebook, 'text/plain')))  # paths of one machine
