"""A process that has imported everything and forks a child per command, so that no run pays for the imports.

Run as a program it reads one JSON job a line and answers with the child's pid, then with its wait status. A
job has `argv`; `extension` (install dnnshifter_ext as main.py does); and perhaps `die`: a list [function,
number, when], for a child that kills itself with SIGKILL before or after the n-th call of os.replace, or of
the extension's conversion of a level (function `convert`).
"""

import functools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


class Zygote:
    """The tests' end of it."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'tests.zygote'],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._process.stdout.readline() == 'ready\n'

    def run(self, *argv, kill_after_s=None, **job):
        """Exit status of a command, or the negative signal that ended it."""

        self._process.stdin.write(json.dumps(job | {'argv': list(map(str, argv))}) + '\n')
        pid = int(self._process.stdout.readline())
        if kill_after_s is not None and not select.select([self._process.stdout], [], [], kill_after_s)[0]:
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def serve():
    import sklearn.datasets  # noqa: F401
    import torch

    import dnnshifter_ext.lottery  # noqa: F401
    import open_lth.main  # noqa: F401
    import open_lth.models.registry  # noqa: F401

    torch.set_num_threads(1)
    print('ready', flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(json.loads(line))
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


def run_child(job):
    """Runs the job's command as main.py would; never returns."""

    from dnnshifter_ext import level as levels
    from dnnshifter_ext.install import install
    from dnnshifter_ext.profiler import profile_together
    from open_lth.main import main

    status = 1
    try:
        sink = os.open(os.devnull, os.O_RDWR)
        os.dup2(sink, 0)
        os.dup2(sink, 1)
        sys.argv = ['main.py', *job['argv']]
        os.fsync = lambda descriptor: None  # what is written survives a kill; only a power cut needs the disk
        levels.profile_together = functools.partial(
            profile_together, budget_s=0
        )  # one measurement each is enough
        if 'die' in job:
            die_at(*job['die'], levels)
        if job.get('extension'):
            install()
        main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def die_at(function, number, when, levels):
    owner = levels if function == 'convert' else os
    real, calls = getattr(owner, function), []

    def dying(*args, **kwargs):
        calls.append(function)
        if len(calls) == number and when == 'before':
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == number and when == 'after':
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, function, dying)


if __name__ == '__main__':
    serve()
