"""The branch `dnnshifter`: converts levels that have been trained already, and makes the portfolio."""

from __future__ import annotations

from dnnshifter_ext import level as levels
from dnnshifter_ext import paths
from open_lth.lottery.branch import base
from open_lth.platforms.platform import get_platform


class Branch(base.Branch):
    """Writes into the same folders as the command `lottery`, so that either picks up the other's work."""

    def branch_function(self):
        if get_platform().is_primary_process:
            levels.convert_level(self.lottery_desc, self.replicate, self.level)

    def run(self) -> None:
        for level in self.levels:  # all of them before anything is written
            levels.require_trained(self.lottery_desc, self.replicate, level)
        super().run()
        if get_platform().is_primary_process:
            text = levels.report(self.lottery_desc, self.replicate, self.levels)
            if self.verbose:
                print(text, flush=True)

    @property
    def branch_root(self) -> str:
        return paths.level_directory(self.lottery_desc, self.replicate, self.level)

    @staticmethod
    def description() -> str:
        return 'Make a smaller, dense model of each level, and a portfolio of them.'

    @staticmethod
    def name() -> str:
        return 'dnnshifter'
