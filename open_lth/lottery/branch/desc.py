"""What defines a branch off a lottery ticket experiment."""

from dataclasses import dataclass

from open_lth.foundations.desc import Desc, join_run_path
from open_lth.foundations.hparams import Hparams
from open_lth.lottery.desc import LotteryDesc


@dataclass
class BranchDescBase(Desc):
    """The hash covers the branch's own hyperparameters; the experiment's is in the folder above."""

    lottery_desc: LotteryDesc
    branch_hparams: Hparams

    @property
    def display(self):
        return f'{self.lottery_desc.display}\n{self.branch_hparams.display}'

    def run_path(self, replicate, level):
        return join_run_path(self.lottery_desc.hashname, f'replicate_{replicate}', f'level_{level}', self.hashname)


def make_BranchDesc(BranchHparams, name):
    """The Desc class of the branch `name`."""

    @dataclass
    class BranchDesc(BranchDescBase):
        lottery_desc: LotteryDesc
        branch_hparams: BranchHparams

        @staticmethod
        def name_prefix():
            return f'lottery_branch_{name}'

        @staticmethod
        def add_args(parser, defaults=None):
            LotteryDesc.add_args(parser, defaults)
            BranchHparams.add_args(parser)

        @classmethod
        def create_from_args(cls, args):
            return cls(LotteryDesc.create_from_args(args), BranchHparams.create_from_args(args))

    return BranchDesc
