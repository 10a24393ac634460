"""The command `main.py experiments`: every experiment at every scale, and how many of its runs are done."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
import pathlib

from experiments import command, executor, scales
from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.runner import Runner


@dataclass
class ExperimentsRunner(Runner):
    """scale_names: those that are listed."""

    scale_names: tuple[str, ...]
    dataset: str | None
    num_replicates: int | None
    results: pathlib.Path

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['experiments']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        command.add_args(parser, default_scale=None)

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> ExperimentsRunner:
        return ExperimentsRunner((args.scale,) if args.scale else scales.NAMES, args.dataset, args.replicates,
                                 args.results)

    def display_output_location(self) -> None:
        print(self.results)

    def run(self) -> None:
        rows = [('experiment', 'scale', 'done', 'missing', 'failed', 'results')]
        for scale_name in self.scale_names:
            scale = scales.get(scale_name, self.dataset, self.num_replicates)
            for name in command.NAMES:
                states = Counter(map(executor.state, command.load(name).runs(scale)))
                path = command.result_path(self.results, scale, name)
                rows.append((name, scale_name, *(str(states[state]) for state in ('done', 'missing', 'failed')),
                             str(path) if path.exists() else '-'))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            name, scale_name, *counts, path = (
                text.ljust(width) if place in (0, 1, 5) else text.rjust(width)
                for place, (text, width) in enumerate(zip(row, widths, strict=True)))
            print('  '.join([name, scale_name, *counts, path]).rstrip())
        print('\nTo run what is missing: python -m experiments.EXPERIMENT --scale=SCALE [--jobs=N] (or --dry_run)')
