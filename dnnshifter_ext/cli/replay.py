"""The command `replay`: a load on a package, with the switcher and with each variant alone; tables and a figure."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import csv
from dataclasses import asdict, dataclass
import io
import json
import math
import pathlib
from typing import TYPE_CHECKING

from dnnshifter_ext.cli import serve
from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.runner import Runner
from open_lth.platforms.platform import get_platform

if TYPE_CHECKING:
    import numpy as np

    from dnnshifter_ext.package import Package
    from dnnshifter_ext.runtime.replay import Costs, Limits, Questions, Rate, Run, Summary

DEFAULT_SECONDS = 60.0
DEADLINE = 5  # latencies of the slowest variant
# Without --qps: from this share of what the slowest variant can do to that share of what the fastest can, and back.
LOW, HIGH = 0.4, 0.8
NUM_QUESTIONS = 64
RATES = 'QPS, QPS,QPS,... (equally long steps), or wave:QPS:QPS:SECONDS (a sine between two rates, with its period)'


@dataclass
class ReplayRunner(Runner):
    portfolio: pathlib.Path
    output: pathlib.Path
    trace: pathlib.Path | None
    rate: Rate | None
    seconds: float | None
    deadline_ms: float | None
    is_simulated: bool
    switch_ms: float
    labelled: pathlib.Path | None
    backend: str
    policy: str
    memory_budget_mb: float | None
    queue: int
    threads: int
    seed: int

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['replay']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group('Replay', 'What is replayed. --seed (0 by default) draws the arrivals.')
        group.add_argument('--portfolio', help='(required: str) The package that `portfolio pack` wrote.')
        group.add_argument('--output', help='(required: str) The folder for replay.json, comparison.csv, timeline.csv '
                           'and replay.png; made if it is not there.')
        group.add_argument('--trace', help='(optional: str) A CSV file with one arrival a line, in seconds.')
        group.add_argument('--qps', help=f'(optional: str) Poisson arrivals at this rate: {RATES}. Without it and '
                           '--trace: up and down again, by what the variants can do.')
        group.add_argument('--seconds', help=f'(default: {DEFAULT_SECONDS:g}, or the whole trace) How long.')
        group.add_argument('--deadline_ms', help=f'(default: {DEADLINE} x the latency of the slowest variant) Later '
                           'answers count as wrong.')
        group.add_argument('--simulate', action='store_true', help='With a simulated clock and the latencies of the '
                           'profiles, in seconds instead of minutes.')
        group.add_argument('--switch_ms', help='(default: 50; only with --simulate) How long a switch takes.')
        group.add_argument('--labelled', help='(optional: str; not with --simulate) An .npz file with `images` '
                           '(float32) and `labels`, to ask. Without it, random images are asked, and the accuracy in '
                           "each variant's profile stands for the share of right answers.")
        serve.add_runtime_args(group, threads=1)

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> ReplayRunner:
        for name in ('portfolio', 'output'):
            if not getattr(args, name):
                raise UserError(f'replay needs --{name}; see replay --help')
        for first, second, is_wrong in (('trace', 'qps', args.trace and args.qps),
                                        ('simulate', 'labelled', args.simulate and args.labelled)):
            if is_wrong:
                raise UserError(f'replay takes --{first} or --{second}, not both')
        if args.switch_ms and not args.simulate:
            raise UserError('replay takes --switch_ms only with --simulate: else a switch takes what it takes')
        serve.parse_policy(args.policy)
        return ReplayRunner(
            pathlib.Path(args.portfolio), pathlib.Path(args.output), pathlib.Path(args.trace) if args.trace else None,
            _rate(args.qps), serve.optional_number('seconds', args.seconds),
            serve.optional_number('deadline_ms', args.deadline_ms), args.simulate,
            serve.optional_number('switch_ms', args.switch_ms or '50'),
            pathlib.Path(args.labelled) if args.labelled else None, serve.backend(args.backend), args.policy,
            serve.optional_number('memory_budget_mb', args.memory_budget_mb), serve.whole_number('queue', args.queue),
            serve.whole_number('threads', args.threads), get_platform().global_seed or 0)

    def display_output_location(self) -> None:
        print(self.output)

    def run(self) -> None:
        if self.output.exists() and not self.output.is_dir():
            raise UserError(f'--output: {self.output} is a file, a folder is needed')
        package = serve.load(self.portfolio)
        from dnnshifter_ext.runtime import Fixed, replay, report
        costs = self._costs(package)
        deadline_ms = self.deadline_ms or DEADLINE * max(variant.latency_ms for variant in costs)
        arrivals_s, duration_s = self._arrivals(costs)
        limits = self._limits(package, costs)
        policies = {report.SWITCHER: serve.parse_policy(self.policy, package)} | {
            variant.name: Fixed(variant.name) for variant in costs
            if limits.inflated_bytes is None or variant.num_bytes <= limits.inflated_bytes}
        questions = None if self.is_simulated else self._questions(package)
        runs = {}
        for label, policy in policies.items():
            if self.is_simulated:
                runs[label] = replay.simulate(costs, arrivals_s, duration_s, policy, limits,
                                              package_bytes=len(package.content), switch_ms=self.switch_ms)
            else:
                print(f'{label}: {duration_s:g} s ...', flush=True)
                runs[label] = replay.replay(
                    package, arrivals_s, duration_s, policy, limits, backend=self.backend, questions=questions,
                    accuracies=[variant.accuracy for variant in costs])
        summaries = [replay.summarise(label, run, deadline_ms, duration_s) for label, run in runs.items()]
        self._write(costs, runs, summaries, arrivals_s, duration_s, deadline_ms)

    def _costs(self, package: Package) -> list[Costs]:
        from dnnshifter_ext.runtime import backends, profiles
        from dnnshifter_ext.runtime.replay import Costs
        try:
            plans = backends.plans(self.backend, package.variants, 1)
        except ValueError as error:
            raise UserError(f'{self.portfolio}: {error}') from error
        costs = [Costs(variant.name, profiles.latency_ms(variant), plan.num_bytes, profiles.accuracy(variant))
                 for variant, plan in zip(package.variants, plans)]
        for variant in costs:
            if not variant.latency_ms:
                raise UserError(f"{self.portfolio}: the profile of '{variant.name}' has no latency at batch size 1 on "
                                'the CPU; pack a run that was profiled')
            if variant.accuracy is None and not self.labelled:
                raise UserError(f"{self.portfolio}: the profile of '{variant.name}' has no accuracy; without "
                                '--simulate, give --labelled images')
        return costs

    def _limits(self, package: Package, costs: Sequence[Costs]) -> Limits:
        from dnnshifter_ext.runtime.replay import Limits
        if self.memory_budget_mb is None:
            return Limits(self.queue, self.threads)
        inflated_bytes = int(self.memory_budget_mb * serve.MIB) - len(package.content)
        if costs[0].num_bytes > inflated_bytes:
            raise UserError(f'--memory_budget_mb: {self.memory_budget_mb:g} MiB are too few for the package and its '
                            'smallest variant')
        return Limits(self.queue, self.threads, inflated_bytes)

    def _arrivals(self, costs: Sequence[Costs]) -> tuple[np.ndarray, float]:
        from dnnshifter_ext.runtime import replay
        if self.trace:
            arrivals_s = _read_trace(self.trace)
            duration_s = self.seconds or math.floor(arrivals_s[-1]) + 1.0
            arrivals_s = arrivals_s[arrivals_s < duration_s]
        else:
            duration_s = self.seconds or DEFAULT_SECONDS
            rate = self.rate or replay.Steps(_up_and_down([variant.latency_ms for variant in costs], self.threads))
            arrivals_s = replay.poisson(rate, duration_s, self.seed)
        if not len(arrivals_s):
            raise UserError(f'no query arrives in {duration_s:g} s')
        return arrivals_s, duration_s

    def _questions(self, package: Package) -> Questions:
        import numpy as np

        from dnnshifter_ext.runtime import backends
        from dnnshifter_ext.runtime.replay import Questions
        shape = backends.plans(self.backend, package.variants[:1], 1)[0].input_shape
        if self.labelled is None:
            if shape is None:
                raise UserError(f'{self.portfolio} does not say what its inputs look like: give --labelled images')
            random = np.random.Generator(np.random.PCG64(self.seed))
            return Questions(random.standard_normal((NUM_QUESTIONS, *shape), np.float32))
        try:
            with np.load(self.labelled, allow_pickle=False) as file:
                images, labels = file['images'], file['labels']
        except (KeyError, ValueError, EOFError) as error:
            raise UserError(f'--labelled: {self.labelled} is no .npz file with `images` and `labels`') from error
        if images.dtype != np.float32 or not len(images) or labels.shape != (len(images),) or (
                shape is not None and images.shape[1:] != shape):
            raise UserError(f'--labelled: float32 images of {shape} with one label each are needed, not {images.dtype} '
                            f'{images.shape} with labels {labels.shape}')
        return Questions(images, labels)

    def _write(self, costs: Sequence[Costs], runs: dict[str, Run], summaries: Sequence[Summary],
               arrivals_s: np.ndarray, duration_s: float, deadline_ms: float) -> None:
        from dnnshifter_ext.runtime import report
        names = [variant.name for variant in costs]
        how = f'simulated, {self.switch_ms:g} ms a switch' if self.is_simulated else f'{self.backend}, in real time'
        rightness = 'labelled images' if self.labelled else 'the accuracy of the profiles'
        title = (f'{self.portfolio.name}, policy {self.policy}, {how}: {len(arrivals_s):,} queries in '
                 f'{duration_s:g} s, deadline {deadline_ms:.3g} ms, right by {rightness}')
        settings = {'portfolio': str(self.portfolio), 'trace': str(self.trace) if self.trace else None,
                    'rate': _described(self.rate), 'seed': self.seed, 'duration_s': duration_s,
                    'deadline_ms': deadline_ms, 'is_simulated': self.is_simulated,
                    'switch_ms': self.switch_ms if self.is_simulated else None, 'policy': self.policy,
                    'backend': self.backend, 'memory_budget_mb': self.memory_budget_mb, 'queue': self.queue,
                    'threads': self.threads, 'rightness': rightness}
        rows = report.timeline(runs, names, arrivals_s, duration_s)
        canvas = report.figure(runs, summaries, names, arrivals_s, duration_s, deadline_ms, title)
        picture = io.BytesIO()
        canvas.savefig(picture, format='png', dpi=110)
        self.output.mkdir(parents=True, exist_ok=True)
        for name, content in {
                'timeline.csv': _csv(rows), 'comparison.csv': _csv([asdict(summary) for summary in summaries]),
                'replay.png': picture.getvalue(),
                'replay.json': json.dumps({
                    'settings': settings, 'variants': [asdict(variant) for variant in costs],
                    'comparison': [_finite(asdict(summary)) for summary in summaries]}, indent=4).encode()}.items():
            with write_atomically(self.output / name, 'wb') as file:
                file.write(content)
        print(f'{title}\n\n{report.text_table(summaries)}\n\nFigure: {self.output / "replay.png"}')


def _rate(text: str | None) -> Rate | None:
    """The value of --qps. Raises UserError."""
    if text is None:
        return None
    from dnnshifter_ext.runtime.replay import Steps, Wave
    if text.startswith('wave:') and text.count(':') == 3:
        low, high, period_s = (serve.optional_number('qps', word) for word in text.split(':')[1:])
        if low <= high:
            return Wave(low, high, period_s)
    elif ':' not in text:
        return Steps(tuple(serve.optional_number('qps', word) for word in text.split(',')))
    raise UserError(f"--qps is {RATES}, not '{text}'")


def _described(rate: Rate | None) -> dict | None:
    return None if rate is None else {'kind': type(rate).__name__.lower()} | asdict(rate)


def _up_and_down(latencies_ms: Sequence[float], num_threads: int) -> tuple[float, ...]:
    """Rates from few to many queries per second and back, in equal ratios."""
    low = LOW * num_threads * 1e3 / max(latencies_ms)
    high = max(HIGH * num_threads * 1e3 / min(latencies_ms), low)
    rates = [low * (high / low)**share for share in (0, 1 / 3, 2 / 3, 1)]
    return (*rates, *rates[::-1])


def _read_trace(path: pathlib.Path) -> np.ndarray:
    """The first column of a CSV file, whose first line may be a title, in rising order. Raises UserError."""
    import numpy as np
    arrivals_s = []
    try:
        with open(path, newline='') as file:
            for number, row in enumerate(csv.reader(file), 1):
                if not row:
                    continue
                try:
                    at_s = float(row[0])
                except ValueError:
                    at_s = math.nan
                    if number == 1:
                        continue
                if not (math.isfinite(at_s) and at_s >= 0):
                    raise UserError(f"--trace: line {number} of {path} is no time in seconds: '{row[0][:40]}'")
                arrivals_s.append(at_s)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f'--trace: {path} is no CSV file') from error
    if not arrivals_s:
        raise UserError(f'--trace: {path} has no arrival')
    return np.sort(np.array(arrivals_s))


def _csv(rows: Sequence[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _finite(row: dict) -> dict:
    """Infinity, which JSON has not, as None: the latency of a refused query."""
    return {name: None if isinstance(value, float) and math.isinf(value) else value for name, value in row.items()}
