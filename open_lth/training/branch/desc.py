"""What defines a branch off a training run."""

from dataclasses import dataclass

from open_lth.foundations.desc import Desc, join_run_path
from open_lth.foundations.hparams import Hparams
from open_lth.training.desc import TrainingDesc


def make_BranchDesc(BranchHparams, name):
    """The Desc class of the branch `name`; the hash covers the branch's own hyperparameters."""

    @dataclass
    class BranchDesc(Desc):
        train_desc: TrainingDesc
        branch_hparams: Hparams

        @staticmethod
        def name_prefix():
            return f'train_branch_{name}'

        @staticmethod
        def add_args(parser, defaults=None):
            TrainingDesc.add_args(parser, defaults)
            BranchHparams.add_args(parser)

        @classmethod
        def create_from_args(cls, args):
            return cls(TrainingDesc.create_from_args(args), BranchHparams.create_from_args(args))

        @property
        def display(self):
            return f'{self.train_desc.display}\n{self.branch_hparams.display}'

        def run_path(self, replicate):
            return join_run_path(self.train_desc.hashname, f'replicate_{replicate}', self.hashname)

    return BranchDesc
