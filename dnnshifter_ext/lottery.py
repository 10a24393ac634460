"""The command `lottery` with a conversion after each level's training and the portfolio at the end."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from dnnshifter_ext import level as levels
from dnnshifter_ext.methods.unstructured import lottery as scored
from open_lth.foundations.errors import UserError
from open_lth.lottery import runner
from open_lth.models.base import Model
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask


@dataclass
class LotteryRunner(runner.LotteryRunner):
    """The engine's runner; `dnnshifter=False` leaves it as it is."""

    dnnshifter: bool = True

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        runner.LotteryRunner.add_args(parser)
        parser.add_argument_group('Pruning strategies', scored.HELP)
        group = parser.add_argument_group('DNNShifter', 'What is done with each level after its training.')
        group.add_argument('--no_dnnshifter', action='store_true',
                           help='(optional) Makes no pruned models, profiles and portfolio.')

    @classmethod
    def create_from_args(cls, args: argparse.Namespace) -> LotteryRunner:
        created = super().create_from_args(args)
        created.dnnshifter = not args.no_dnnshifter
        scored.validate(created.desc)
        return created

    def run(self) -> None:
        super().run()
        if self._converts:
            text = levels.report(self.desc, self.replicate, range(self.levels + 1))
            if self.verbose:
                print(text, flush=True)

    def _make_mask(self, level: int, model: Model, mask: Mask) -> Mask:
        if self.desc.pruning_hparams.pruning_strategy in scored.STRATEGIES:
            return scored.make_mask(self.desc, self.replicate, level, model, mask, self.verbose)
        return super()._make_mask(level, model, mask)

    def _train_level(self, level: int) -> None:
        super()._train_level(level)
        if self._converts:
            try:
                levels.convert_level(self.desc, self.replicate, level)
            except UserError as error:
                hint = 'With --no_dnnshifter the levels are trained without a conversion.'
                raise UserError(f'{error}. {hint}') from error

    @property
    def _converts(self) -> bool:
        return self.dnnshifter and get_platform().is_primary_process
