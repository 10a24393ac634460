"""The command `serve`: a package over HTTP, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
import math
import os
import pathlib
from typing import TYPE_CHECKING

from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.errors import UserError
from open_lth.foundations.runner import Runner

if TYPE_CHECKING:
    from dnnshifter_ext.package import Package
    from dnnshifter_ext.runtime import Policy

MIB = 2**20
BACKENDS = ('torch', 'onnxruntime', 'numpy')
POLICIES = 'qps, latency:MS (a target for the 95th percentile in milliseconds), fixed, or fixed:NAME'


@dataclass
class ServeRunner(Runner):
    portfolio: pathlib.Path
    host: str
    port: int
    backend: str
    policy: str
    memory_budget_mb: float | None
    queue: int
    threads: int
    max_request_mb: float

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['serve']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group('Serve', 'What is served, and how.')
        group.add_argument('--portfolio', help='(required: str) The package that `portfolio pack` wrote.')
        group.add_argument('--host', default='127.0.0.1', help='(default: 127.0.0.1, this machine only) The address '
                           'to listen on.')
        group.add_argument('--port', default='8000', help='(default: 8000) The port; 0 for any that is free.')
        group.add_argument('--max_request_mb', default='4', help='(default: 4) The longest request, in MiB.')
        add_runtime_args(group, threads=os.cpu_count() or 1)

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> ServeRunner:
        if not args.portfolio:
            raise UserError('serve needs --portfolio; see serve --help')
        port = whole_number('port', args.port, least=0)
        if port > 65535:
            raise UserError(f'--port must be at most 65535, not {port}')
        parse_policy(args.policy)
        return ServeRunner(pathlib.Path(args.portfolio), args.host, port, backend(args.backend),
                           args.policy, optional_number('memory_budget_mb', args.memory_budget_mb),
                           whole_number('queue', args.queue), whole_number('threads', args.threads),
                           optional_number('max_request_mb', args.max_request_mb))

    def display_output_location(self) -> None:
        print(f'http://{self.host}:{self.port}')

    def run(self) -> None:
        package = load(self.portfolio)
        require_server()
        from dnnshifter_ext.runtime import Runtime, server
        from dnnshifter_ext.runtime.door import AtTheDoor, Door
        policy = parse_policy(self.policy, package)
        with server.listen(self.host, self.port) as sock:
            door = Door([variant.name for variant in package.variants], self.queue)
            with Runtime(package, backend=self.backend, policy=AtTheDoor(policy, door), num_threads=1,
                         memory_budget_mb=self.memory_budget_mb) as runtime:
                application = server.app(runtime, package, door, num_threads=self.threads,
                                         max_request_bytes=int(self.max_request_mb * MIB))
                host, port = sock.getsockname()[:2]
                print(f'{self.portfolio}: {len(package.variants)} variants, {runtime.stats().active} is active. On '
                      f'http://{f"[{host}]" if ":" in host else host}:{port} until Ctrl-C.', flush=True)
                server.Server(application, door).run(sockets=[sock])
        answered = door.stats()
        print(f'{answered.num_answered:,} queries answered, {answered.num_refused:,} refused, '
              f'{answered.num_failed:,} failed.', flush=True)


def add_runtime_args(group: argparse._ArgumentGroup, threads: int) -> None:
    """The flags that `serve` and `replay` share."""
    group.add_argument('--backend', default='torch', help=f'(default: torch) One of {", ".join(BACKENDS)}.')
    group.add_argument('--policy', default='qps', help=f'(default: qps) When to switch: {POLICIES}.')
    group.add_argument('--memory_budget_mb', help='(optional: float) What the package and all inflated variants may '
                       'take, in MiB.')
    group.add_argument('--queue', default='64', help='(default: 64) How many queries may be in work or waiting; more '
                       'are refused.')
    group.add_argument('--threads', default=str(threads), help=f'(default: {threads}) How many queries are in work at '
                       'once, each on one thread.')


def load(path: pathlib.Path) -> Package:
    """The package. Raises UserError when it is missing or damaged, or has no variant."""
    from dnnshifter_ext.package import PackageError, files
    try:
        package = files.load(path)
    except FileNotFoundError as error:
        raise UserError(f'--portfolio: there is no file {path}') from error
    except IsADirectoryError as error:
        raise UserError(f'--portfolio: {path} is a folder; pack it first with `portfolio pack`') from error
    except PackageError as error:
        raise UserError(str(error)) from error
    if not package.variants:
        raise UserError(f'{path} has no variant')
    return package


def require_server() -> None:
    """Raises UserError where the web server is not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f'serve needs starlette and uvicorn ({error}): pip install starlette uvicorn') from error


def parse_policy(text: str, package: Package | None = None) -> Policy:
    """The value of --policy. Raises UserError, also for a variant that the package has not."""
    from dnnshifter_ext.runtime import Fixed, LatencyTarget, QPSTrend
    kind, colon, value = text.partition(':')
    if text == 'qps':
        return QPSTrend()
    if kind == 'latency' and colon:
        return LatencyTarget(optional_number('policy', value))
    if kind == 'fixed' and bool(colon) == bool(value):
        names = [variant.name for variant in package.variants] if package else [value]
        if value and value not in names:
            raise UserError(f"--policy: there is no variant '{value}', only {', '.join(names)}")
        return Fixed(value or None)
    raise UserError(f"--policy is {POLICIES}, not '{text}'")


def backend(name: str) -> str:
    """The value of --backend. Raises UserError."""
    if name not in BACKENDS:
        raise UserError(f"--backend is one of {', '.join(BACKENDS)}, not '{name}'")
    return name


def whole_number(flag: str, text: str, least: int = 1) -> int:
    """Raises UserError unless it is one, and at least `least`."""
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise UserError(f"--{flag} is a whole number of at least {least}, not '{text}'")
    return int(text)


def optional_number(flag: str, text: str | None) -> float | None:
    """None for None. Raises UserError unless it is finite and above 0."""
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"--{flag}: a number above 0 is needed, not '{text}'")
    return value


def main() -> None:
    """`python -m dnnshifter_ext.cli.serve`: the same command, for machines without torch, which the engine needs."""
    parser = argparse.ArgumentParser(prog='python -m dnnshifter_ext.cli.serve', allow_abbrev=False)
    ServeRunner.add_args(parser)
    try:
        ServeRunner.create_from_args(parser.parse_args()).run()
    except UserError as error:
        parser.exit(2, f'error: {" ".join(str(error).split())}\n')


if __name__ == '__main__':
    main()
