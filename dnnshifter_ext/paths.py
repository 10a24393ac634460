"""The one spelling of every file name this package writes into a run directory."""

from __future__ import annotations

import os
import pathlib

EXPERIMENT = 'dnnshifter'


def level_directory(desc, replicate: int, level: int) -> str:
    """level_K/dnnshifter, beside the level's main folder. `desc` is the engine's LotteryDesc."""
    return desc.run_path(replicate, level, EXPERIMENT)


def run_directory(desc, replicate: int) -> str:
    """The folder of the replicate, which holds the levels."""
    return os.path.dirname(os.path.dirname(desc.run_path(replicate, 0)))


def model(directory: str) -> str: return os.path.join(directory, 'model.pth')


def plan(directory: str) -> str: return os.path.join(directory, 'plan.json')


def profile(directory: str) -> str: return os.path.join(directory, 'profile.json')


def scoring(directory: str) -> str:
    """How a mask was made and what that cost; beside the engine's mask.pth."""
    return os.path.join(directory, 'scoring.json')


def portfolio_table(directory: str) -> str: return os.path.join(directory, 'portfolio.csv')


def portfolio_figure(directory: str) -> str: return os.path.join(directory, 'portfolio.png')


def plan_beside(output: pathlib.Path) -> pathlib.Path:
    """The plan of a model that the command `convert` writes to `output`."""
    return output.with_name(f'{output.stem}.plan.json')
