"""The golden `branch train oneshot` runs, all on one training run."""

import os

import pytest

from tests.helpers import artefacts, assert_one_line_error, load_golden, run_engine
from tests.open_lth.golden.test_e2e import check_files

GOLDEN = load_golden('fork_oneshot_e2e')
BRANCHES = [name for name in GOLDEN if name not in ('_meta', 'train')]
# Ends well in the fork, with scores that are not numbers and an empty mask; a clear error here.
REFUSED = ('snip0',)


@pytest.fixture(scope='module')
def trunk(synthetic_cifar_test256, tmp_path_factory):
    """The root holding the training run that all branches start from."""

    root = tmp_path_factory.mktemp('trunk')
    golden = GOLDEN['train']
    outcome = run_engine(*golden['argv'], root=root, dataset_root=synthetic_cifar_test256,
                         seed=golden['torch_manual_seed'])
    assert outcome.status == 0, outcome.err
    return root


def test_trunk(trunk):
    files = {name for name in artefacts(trunk) if '/main/' in name}
    check_files(trunk, files, GOLDEN['train']['new_files'], same_bits=False)


@pytest.mark.parametrize('name', BRANCHES)
def test_branch(name, trunk, synthetic_cifar_test256, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    golden, before = GOLDEN[name], artefacts(trunk)
    outcome = run_engine(*golden['argv'], root=trunk, dataset_root=synthetic_cifar_test256,
                         seed=golden['torch_manual_seed'])
    new_files = artefacts(trunk) - before
    if golden['error'] or name in REFUSED:
        assert_one_line_error(outcome)
        assert new_files == set()
    else:
        assert outcome.status == golden['exit'], outcome.err
        check_files(trunk, new_files, golden['new_files'], same_bits=False)
    assert os.listdir(tmp_path) == [], 'fixed: the fork writes two files into the working directory'
