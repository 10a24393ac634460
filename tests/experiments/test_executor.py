"""Tasks in parallel processes: skipped, reported, carried on."""

from dataclasses import dataclass
import json
import os  # noqa: F401 (for actions)
import pathlib
import time

import pytest

from experiments import executor


@dataclass(frozen=True)
class FakeTask:
    """Notes when it begins and ends; what it does in between is in `action`."""

    title: str
    directory: str
    action: str = ''
    after: 'FakeTask | None' = None
    alone: bool = False

    @property
    def times(self):
        return pathlib.Path(self.directory) / 'times'

    @property
    def is_done(self):
        return self.times.exists()

    @property
    def blocked_by(self):
        return None if self.after is None or self.after.is_done else self.after.title

    def work(self):
        begin = time.monotonic()
        print('working', self.title, flush=True)
        exec(self.action)
        self.times.write_text(json.dumps([begin, time.monotonic()]))


@pytest.fixture
def make(tmp_path, local_platform):
    return lambda title, action='', **options: FakeTask(title, str(tmp_path / title), action, **options)


def errors(outcomes):
    return {outcome.task.title: outcome.error for outcome in outcomes}


def test_a_failure_is_reported_and_the_rest_carried_on(make):
    failing = make('failing', "raise ValueError('layer3 is empty')")
    tasks = [failing, make('after failing', after=failing), make('killed', 'os.kill(os.getpid(), 9)'),
             make('liar', 'os._exit(0)'), make('fine')]
    reported = []
    found = errors(executor.execute(tasks, jobs=1, report=lambda outcome, number, total: reported.append(
        (outcome.task.title, number, total))))
    assert found == {
        'failing': 'exit status 1: ValueError: layer3 is empty', 'after failing': 'needs: failing',
        'killed': 'killed by signal 9: working killed', 'liar': 'exit status 0: working liar', 'fine': ''}
    assert [number for _, number, _ in reported] == [1, 2, 3, 4, 5] and {total for *_, total in reported} == {5}
    assert [executor.state(task) for task in tasks] == ['failed', 'missing', 'failed', 'failed', 'done']
    assert 'Traceback' in pathlib.Path(executor.log_path(failing)).read_text()


def test_what_is_done_is_not_done_again_and_what_failed_is(make):
    tasks = [make('one'), make('two', "raise SystemExit('no')")]
    executor.execute(tasks, jobs=1)
    before = tasks[0].times.read_text()
    repaired = [tasks[0], make('two')]
    assert errors(executor.execute(repaired, jobs=1)) == {'two': ''}
    assert tasks[0].times.read_text() == before
    assert [executor.state(task) for task in repaired] == ['done', 'done']
    assert executor.record(repaired[1])['seconds'] > 0 and 'torch' in executor.record(repaired[1])['machine']


def test_tasks_share_the_time_unless_they_need_the_machine_alone(make):
    nap = 'time.sleep(0.5)'
    tasks = [make('timing', nap, alone=True), make('a', nap), make('b', 'time.sleep(1)'),
             make('timing too', alone=True), make('c', nap)]
    assert not any(errors(executor.execute(tasks, jobs=2)).values())
    spans = {task.title: json.loads(task.times.read_text()) for task in tasks}

    def overlap(first, second):
        return spans[first][0] < spans[second][1] and spans[second][0] < spans[first][1]

    assert overlap('a', 'b')
    assert not any(overlap(timing, other) for timing in ('timing', 'timing too') for other in spans if other != timing)


def test_the_number_of_threads_is_that_of_the_scale(make):
    task = make('threads', 'import torch; print(torch.get_num_threads())')
    executor.execute([task], jobs=1, num_threads=3)
    assert pathlib.Path(executor.log_path(task)).read_text().splitlines()[-1] == '3'


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError('waited in vain')
