"""Does declared tasks in parallel processes: what is done is skipped, a failure is reported, and the rest carried on.

A task has a title, a directory, is_done, blocked_by and work(), and is small enough to be sent to another process; one
that is `alone` has the machine to itself, as timing needs it. It may be killed at any moment; done again, it goes on.
Beside its files stand experiment.log, what it printed, and experiment.json, how long it took or why it failed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import fcntl
import functools
import json
import multiprocessing
from multiprocessing import connection
import os
import platform as python_platform
import threading
import time
from typing import Protocol

import torch

from experiments import stored
from open_lth.foundations.files import write_atomically
from open_lth.platforms.base import Platform
from open_lth.platforms.platform import get_platform

# By the fork server, so that no process has to.
_IMPORTED_ONCE = [
    'sklearn.datasets', 'matplotlib.figure', 'pandas', 'dnnshifter_ext.lottery',
    'dnnshifter_ext.methods.unstructured.oneshot', 'experiments.executor', 'experiments.measurements', 'open_lth.main']


class Task(Protocol):
    title: str
    directory: str
    alone: bool

    @property
    def is_done(self) -> bool: ...

    @property
    def blocked_by(self) -> str | None: ...

    def work(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """error: '' when the task is done."""

    task: Task
    seconds: float
    error: str = ''


def state(task: Task) -> str:
    """'done', 'failed' (the last time it was tried) or 'missing'."""
    return 'done' if task.is_done else 'failed' if record(task).get('error') else 'missing'


def record(task: Task) -> dict:
    """What experiment.json says of the last time that the task ended: seconds, machine, error. {} if it never did."""
    try:
        return stored.read(_record_path(task))
    except FileNotFoundError:
        return {}


def log_path(task: Task) -> str:
    return os.path.join(task.directory, 'experiment.log')


def execute(
    tasks: Sequence[Task], *, jobs: int, num_threads: int | None = None,
    report: Callable[[Outcome, int, int], None] = lambda outcome, number, total: None,
) -> list[Outcome]:
    """Does all tasks that are not done, `jobs` at a time, and returns the outcome of each of these.

    num_threads: torch's, in each process. report(outcome, number, total) is called as they end.
    """
    waiting = [task for task in tasks if not task.is_done]
    total, outcomes, running = len(waiting), [], {}

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        report(outcome, len(outcomes), total)

    processes = multiprocessing.get_context('forkserver')
    processes.set_forkserver_preload(_IMPORTED_ONCE)
    try:
        while waiting or running:
            while len(running) < jobs and (task := _startable(waiting, [task for _, task, _ in running.values()])):
                waiting.remove(task)
                process = _start(processes, task, num_threads)
                running[process.sentinel] = (process, task, time.perf_counter())
            if not running:  # and nothing can be started: what these start from has failed
                for task in waiting:
                    ended(Outcome(task, 0, f'needs: {task.blocked_by}'))
                break
            for sentinel in connection.wait(list(running)):
                process, task, start_s = running.pop(sentinel)
                process.join()
                outcome = Outcome(task, time.perf_counter() - start_s, _error(process.exitcode, task))
                _write_record(outcome)
                ended(outcome)
    finally:
        for process, _, _ in running.values():
            process.terminate()
            process.join()
    return outcomes


def _startable(waiting: Sequence[Task], running: Sequence[Task]) -> Task | None:
    if any(task.alone for task in running):
        return None
    return next((task for task in waiting if not (task.alone and running) and task.blocked_by is None), None)


def _start(processes, task: Task, num_threads: int | None):
    os.makedirs(task.directory, exist_ok=True)
    process = processes.Process(target=_work, args=(task, get_platform(), num_threads))
    process.start()
    return process


def _work(task: Task, platform: Platform, num_threads: int | None) -> None:
    """In a process of its own, which ends when its parent does.

    Two calls of the same experiment share the work: the second one waits for the first one's task, and finds it done.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log_path(task), 'a') as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.truncate(0)
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        with platform.in_force():
            if not task.is_done:
                task.work()


def _end_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _error(exit_code: int, task: Task) -> str:
    """'' for a task that is done; else the last line of its log."""
    if exit_code == 0 and task.is_done:
        return ''
    with open(log_path(task), errors='replace') as file:
        lines = file.read().split('\n')
    last = next((line.strip() for line in reversed(lines) if line.strip()), 'no output')
    how = f'killed by signal {-exit_code}' if exit_code < 0 else f'exit status {exit_code}'
    return f'{how}: {last}'


def _record_path(task: Task) -> str:
    return os.path.join(task.directory, 'experiment.json')


def _write_record(outcome: Outcome) -> None:
    with write_atomically(_record_path(outcome.task)) as file:
        json.dump({'title': outcome.task.title, 'seconds': outcome.seconds, 'machine': machine(),
                   'error': outcome.error}, file, indent=4)


@functools.cache
def machine() -> str:
    """This machine in words."""
    parts = [f'{os.cpu_count()} cores of {_cpu_name()}']
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ', '.join([*parts, f'torch {torch.__version__}'])


def _cpu_name() -> str:
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.partition(':')[2].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        return python_platform.processor() or python_platform.machine()
