"""Puts the extension into the engine's registries. The engine never imports the extension."""

from __future__ import annotations

from open_lth.cli.runner_registry import DESCRIPTIONS, registered_runners
from open_lth.lottery.branch.registry import registered_branches


def install() -> None:
    """Replaces the command `lottery` by ours, adds `convert` and the branch `dnnshifter`; imported when used."""
    registered_runners['lottery'] = 'dnnshifter_ext.lottery:LotteryRunner'
    registered_runners['convert'] = 'dnnshifter_ext.cli.convert:ConvertRunner'
    DESCRIPTIONS['convert'] = 'Make a smaller, dense model of your own sparse one.'
    registered_branches['dnnshifter'] = 'dnnshifter_ext.branch:Branch'
