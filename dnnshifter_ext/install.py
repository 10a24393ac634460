"""Puts the extension into the engine's registries. The engine never imports the extension."""

from __future__ import annotations

from dnnshifter_ext.methods.unstructured import LOTTERY_STRATEGIES
from open_lth.cli.runner_registry import DESCRIPTIONS, registered_runners
from open_lth.lottery.branch.registry import registered_branches
from open_lth.pruning.registry import registered_strategies
from open_lth.training.branch.registry import registered_branches as registered_train_branches


def install() -> None:
    """Replaces `lottery` and `branch train oneshot`; adds commands, branches and strategies. All imported when used."""
    registered_runners['lottery'] = 'dnnshifter_ext.lottery:LotteryRunner'
    registered_runners['convert'] = 'dnnshifter_ext.cli.convert:ConvertRunner'
    DESCRIPTIONS['convert'] = 'Make a smaller, dense model of your own sparse one.'
    registered_runners['export'] = 'dnnshifter_ext.cli.export:ExportRunner'
    DESCRIPTIONS['export'] = 'Write a converted model as ONNX, checked with ONNX Runtime.'
    registered_runners['portfolio'] = 'dnnshifter_ext.cli.portfolio:PortfolioRunner'
    DESCRIPTIONS['portfolio'] = 'Pack the variants of a run into one file; list, verify, unpack, export such a file.'
    registered_runners['serve'] = 'dnnshifter_ext.cli.serve:ServeRunner'
    DESCRIPTIONS['serve'] = 'Answer queries over HTTP from a package, switching between its variants.'
    registered_runners['replay'] = 'dnnshifter_ext.cli.replay:ReplayRunner'
    DESCRIPTIONS['replay'] = 'Compare switching with each variant alone under a load, for real or simulated.'
    registered_branches['dnnshifter'] = 'dnnshifter_ext.branch:Branch'
    registered_train_branches['oneshot'] = 'dnnshifter_ext.methods.unstructured.oneshot:Branch'
    registered_train_branches['iterative'] = 'dnnshifter_ext.methods.unstructured.iterative:Branch'
    for name in LOTTERY_STRATEGIES:
        registered_strategies[name] = 'dnnshifter_ext.methods.unstructured.lottery:Strategy'
