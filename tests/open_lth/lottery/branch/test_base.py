"""How a branch comes from an annotated function."""

import hashlib

import pytest

from open_lth.foundations.hparams import DatasetHparams, Hparams
from open_lth.lottery.branch.base import Branch
from open_lth.lottery.branch.registry import get, registered_branches
from open_lth.lottery.desc import LotteryDesc
from open_lth.pruning.sparse_global import PruningHparams
from tests.helpers import tiny_desc


def make_branch(function):
    """A branch class around a function, recording its calls."""

    return type('Example', (Branch,), {
        'branch_function': function, 'name': staticmethod(lambda: 'example'),
        'description': staticmethod(lambda: 'An example.')})


def lottery_desc():
    desc = tiny_desc()
    return LotteryDesc(desc.model_hparams, desc.dataset_hparams, desc.training_hparams,
                       PruningHparams(pruning_strategy='sparse_global'))


def test_parameters_become_hyperparameters():
    def function(self, a: int, b: str = 'x', c: bool = False, d: float = 0.5):
        pass

    hparams = make_branch(function).BranchHparams
    assert issubclass(hparams, Hparams)
    assert str(hparams(a=3)) == 'Hparams(a=3)'
    assert str(hparams(a=3, b='y', c=True, d=1.0)) == "Hparams(a=3, b='y', c=True, d=1.0)"
    assert hparams(a=3).display.startswith('Branch Arguments\n    * a => 3')


def test_parameters_may_be_hparams():
    def function(self, data: DatasetHparams):
        pass

    hparams = make_branch(function).BranchHparams
    assert (
        str(hparams(DatasetHparams('digits', 3)))
        == "Hparams(data=Hparams(batch_size=3, dataset_name='digits'))"
    )


def no_annotation(self, a):
    pass


def odd_annotation(self, a: list):
    pass


def text_annotation(self, a: 'int' = 3):
    pass


@pytest.mark.parametrize('function', [no_annotation, odd_annotation, text_annotation])
def test_parameters_without_a_usable_type_are_refused(function):
    with pytest.raises(ValueError):
        make_branch(function)


def test_hash_and_folders(local_platform):
    def function(self, a: int):
        calls.append((self.level, a, self.branch_root, self.level_root))

    calls, desc = [], lottery_desc()
    cls = make_branch(function)
    branch = cls.create_from_hparams(2, [1, 4], desc, cls.BranchHparams(a=7))
    expected = 'lottery_branch_example_' + hashlib.md5(b'Hparams(a=7)').hexdigest()
    assert branch.experiment_name == expected and branch.lottery_desc is desc
    branch.run()
    folder = f'{local_platform.root}/{desc.hashname}/replicate_2'
    assert calls == [(number, 7, f'{folder}/level_{number}/{expected}', f'{folder}/level_{number}/main')
                     for number in (1, 4)]


def test_a_branch_without_hyperparameters(local_platform):
    cls = make_branch(lambda self: None)
    assert cls.BranchDesc(lottery_desc(), cls.BranchHparams()).hashname.endswith(
        hashlib.md5(b'Hparams()').hexdigest())


def test_verbose_branches_announce_each_level(local_platform, capsys):
    cls = make_branch(lambda self: None)
    cls.create_from_hparams(1, [2], lottery_desc(), cls.BranchHparams(), verbose=True).run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ['=' * 82, 'Branch example (Replicate 1, Level 2)']
    cls.create_from_hparams(1, [2], lottery_desc(), cls.BranchHparams()).run()
    assert capsys.readouterr().out == ''


def test_registry():
    assert {'randomly_prune', 'randomly_reinitialize', 'retrain'} <= set(registered_branches)
    assert issubclass(get('retrain'), Branch)
    with pytest.raises(ValueError):
        get('nope')
