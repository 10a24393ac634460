"""The command line that all experiments share: python -m experiments.NAME --scale=SCALE.

An experiment is a module of this package with

    TITLE                        what it shows
    runs(scale)                  the tasks that it needs
    read(runs)                   what they found, one row per model
    analyse(results)             the table: one row per value shown, with spread and n
    report(scale, table)         the table for people, in Markdown
    figure(scale, table)         the picture, where there is one
    NETWORKS                     names of the networks, where not all of the scale are used
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import importlib
import os
import pathlib
import shlex
import sys
import time
from types import ModuleType

from experiments import executor, scales, tables
from experiments.executor import Outcome, Task
from experiments.scales import Scale
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.errors import UserError
from open_lth.platforms.local import Platform

NAMES = ('table2_baselines', 'fig5_accuracy', 'fig6_runtime', 'table5_switching')
RESULTS = pathlib.Path(__file__).resolve().parent.parent / 'results'


def main(name: str, argv: Sequence[str] | None = None) -> None:
    """Does what is missing of an experiment, then writes its table, text and figure into the folder of the scale.

    Exit status: 0; 1 if a run failed (all else is there, and shown as missing); 2 for a mistake; 130 if interrupted.
    """
    experiment = load(name)
    parser = argparse.ArgumentParser(prog=f'python -m experiments.{name}', description=experiment.TITLE)
    add_args(parser)
    parser.add_argument('--jobs', type=int, default=1, help='(default: 1) How many runs at a time.')
    parser.add_argument('--dry_run', action='store_true', help='Lists the runs and their commands, and does nothing.')
    Platform.add_args(parser)
    try:
        sys.exit(_main(name, experiment, parser.parse_args(argv)))
    except BrokenPipeError:  # the reader of our output left, for example `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (UserError, OSError) as error:
        print(f'error: {" ".join(str(error).split())}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print('\nInterrupted. Type the same command again to continue where it stopped.', file=sys.stderr)
        sys.exit(130)


def load(name: str) -> ModuleType:
    return importlib.import_module(f'experiments.{name}')


def add_args(parser: argparse.ArgumentParser, default_scale: str | None = 'small') -> None:
    """What also the listing of all experiments asks for."""
    group = parser.add_argument_group('Experiment')
    group.add_argument('--scale', default=default_scale,
                       help=f'(default: {default_scale or "all"}) {", ".join(scales.NAMES)}.')
    group.add_argument('--dataset', help="(optional: str) Trains on this data set instead of the scale's.")
    group.add_argument('--replicates', type=int, help="(optional: int) How many, instead of the scale's number.")
    group.add_argument('--results', type=pathlib.Path, default=RESULTS,
                       help='(optional: str) The folder of tables and figures.')


def result_path(results: pathlib.Path, scale: Scale, name: str) -> pathlib.Path:
    """The Markdown file, which is written last; .csv and .png are beside it."""
    return results / scale.folder / f'{name}.md'


def _main(name: str, experiment: ModuleType, args: argparse.Namespace) -> int:
    if args.jobs < 1:
        raise UserError(f'--jobs must be at least 1, not {args.jobs}')
    platform = Platform.create_from_args(args)
    with platform.in_force():
        scale = scales.get(args.scale, args.dataset, args.replicates)
        tasks = experiment.runs(scale)
        if args.dry_run:
            print('\n'.join(_listing(tasks, args)))
            return 0
        outcomes = _execute(name, scale, tasks, args.jobs)
        path = result_path(args.results, scale, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = experiment.analyse(experiment.read(tasks))
        tables.write_table(path.with_suffix('.csv'), table)
        if hasattr(experiment, 'figure'):
            tables.write_figure(path.with_suffix('.png'), experiment.figure(scale, table))
        text = experiment.report(scale, table)
        tables.write_text(path, '\n'.join([*_head(name, experiment, scale, args), '', text, '', *_foot(tasks), '']))
        print('\n'.join(['', *_foot(tasks), '', f'Table: {path}', f'CSV: {path.with_suffix(".csv")}',
                         *([f'Figure: {path.with_suffix(".png")}'] if hasattr(experiment, 'figure') else [])]))
    return int(any(outcome.error for outcome in outcomes))


def _execute(name: str, scale: Scale, tasks: Sequence[Task], jobs: int) -> list[Outcome]:
    missing = [task for task in tasks if not task.is_done]
    print(f'{name} at scale {scale.name}: {len(missing)} of {len(tasks)} runs to do, {jobs} at a time', flush=True)
    if not missing:
        return []
    for network in scale.networks:  # a download, if one is needed, once and not in every run
        with contextlib.suppress(UserError):  # the runs will say it
            datasets_registry.find(network.lottery.dataset_hparams)
    begin_s = time.perf_counter()

    def report(outcome: Outcome, number: int, total: int) -> None:
        elapsed_s = time.perf_counter() - begin_s
        left = f'about {_duration(elapsed_s / number * (total - number))} left' if number < total else 'all done'
        what = f'FAILED ({outcome.error}; log: {executor.log_path(outcome.task)})' if outcome.error else 'done'
        print(f'[{number:>{len(str(total))}}/{total}] {outcome.task.title}: {what}, {_duration(outcome.seconds)}; '
              f'{_duration(elapsed_s)} so far, {left}', flush=True)

    return executor.execute(tasks, jobs=jobs, num_threads=scale.num_threads, report=report)


def _listing(tasks: Sequence[Task], args: argparse.Namespace) -> list[str]:
    """Each task with its state, and the command that does it by hand."""
    folders = [f'--{name}={folder}' for name in ('root', 'dataset_root', 'imagenet_root', 'tinyimagenet_root')
               if (folder := getattr(args, name))]
    lines = []
    for task in tasks:
        seconds = executor.record(task).get('seconds')
        took = '' if seconds is None else f', last time {_duration(seconds)}'
        lines.append(f'{executor.state(task):8}{task.title}{took}')
        if hasattr(task, 'command'):
            lines.append(f'        python main.py {shlex.join([*task.command, *folders])}')
    return lines


def _head(name: str, experiment: ModuleType, scale: Scale, args: argparse.Namespace) -> list[str]:
    flags = ''.join(f' --{flag}={value}' for flag in ('dataset', 'replicates') if (value := getattr(args, flag)))
    networks = '; '.join(f'{network.title} (in place of the paper\'s {network.paper_title})'
                         if scale.name != 'paper' else network.title for network in scale.networks
                         if network.name in getattr(experiment, 'NETWORKS', (network.name,)))
    return [f'# {experiment.TITLE}', '', f'`python -m experiments.{name} --scale={scale.name}{flags}`', '',
            f'{networks}.', '', tables.LEGEND]


def _foot(tasks: Sequence[Task]) -> list[str]:
    """How long it took and where, and what failed."""
    records = [executor.record(task) for task in tasks]
    timed = [record for record in records if record and not record['error']]
    machines = sorted({record['machine'] for record in timed})
    lines = [f'{sum(task.is_done for task in tasks)} of {len(tasks)} runs are done. Those that were timed '
             f'({len(timed)}) took {_duration(sum(record["seconds"] for record in timed))} in all, on '
             f'{" and ".join(machines) or "no machine"}.']
    failed = [(task, record) for task, record in zip(tasks, records, strict=True)
              if not task.is_done and record.get('error')]
    if failed:
        lines += ['', 'Failed:', '', *(f'* {task.title}: {record["error"]}' for task, record in failed)]
    return lines


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f'{seconds:.1f} s'
    return f'{seconds / 60:.1f} min' if seconds < 3600 else f'{seconds / 3600:.1f} h'
