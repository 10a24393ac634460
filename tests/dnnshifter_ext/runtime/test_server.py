"""The server: what it answers and refuses, under overload and while it ends."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest

from dnnshifter_ext.install import install
from dnnshifter_ext.runtime import server
from tests import helpers
from tests.dnnshifter_ext.runtime import portfolios, serving
from tests.dnnshifter_ext.runtime.serving import MAX_REQUEST_BYTES, ask

BATCH = portfolios.images(2)
NPY = server.npy(BATCH)
SWITCH = {'headers': {'Content-Type': 'application/json'}}


def infer(content, **keywords):
    return 'POST', '/infer', {'content': content, **keywords}


def switch(to):
    return 'POST', '/switch', {'json': {'to': to}}


@pytest.fixture(scope='module')
def application():
    with serving.parts() as (application, _, _):
        yield application


def assert_refused(response, status, *words):
    assert response.status_code == status, response.text
    assert response.headers['content-type'].startswith('text/plain')
    assert response.text.count('\n') == 1 and response.text.endswith('\n')
    assert all(word in response.text for word in words), response.text


# ---- inference

def test_answers_come_in_the_format_of_the_question_and_say_who_gave_them(application):
    binary, text = ask(application, infer(NPY), infer(json.dumps(BATCH.tolist())))
    expected = portfolios.expected(BATCH)
    assert (binary.status_code, binary.headers['content-type']) == (200, 'application/x-npy')
    assert (text.status_code, text.headers['content-type']) == (200, 'application/json')
    for response, outputs in ((binary, server.batch_from_npy(binary.content)), (text, np.array(text.json()))):
        assert portfolios.is_close(outputs, expected[response.headers['x-dnnshifter-variant']])


def test_an_array_in_the_order_of_fortran_is_the_same_batch(application):
    [response] = ask(application, infer(server.npy(np.asfortranarray(BATCH))))
    expected = portfolios.expected(BATCH)['middle']
    assert portfolios.is_close(server.batch_from_npy(response.content), expected)


def lying_npy():
    return server.npy(np.zeros((1, 3, 8, 8), np.float32)).replace(b'(1, 3, 8, 8)', b'(9999999999,)')


GARBAGE = {
    'nothing': (b'', 'neither'), 'text': (b'hello', 'neither'), 'not utf-8': (b'\xff\xfe\xfd', 'neither'),
    'cut npy': (NPY[:-1], 'bytes of data'), 'longer npy': (NPY + b'x', 'bytes of data'),
    'half a header': (NPY[:40], 'damaged'), 'npy that lies': (lying_npy(), 'bytes of data'),
    'npy of float64': (server.npy(BATCH.astype(np.float64)), 'float32, not float64'),
    'npy of another byte order': (server.npy(BATCH.astype('>f4')), 'float32'),
    'pickled npy': (NPY.replace(b"'<f4'", b"'|O' "), 'float32, not object'),
    'another shape': (server.npy(np.zeros((2, 3, 8, 9), np.float32)), '(N, 3, 8, 8)'),
    'no image': (server.npy(np.zeros((0, 3, 8, 8), np.float32)), 'at least 1'),
    'NaN': (server.npy(BATCH * np.float32('nan')), 'finite'), 'scalar': (b'1', '(N, 3, 8, 8)'),
    'ragged lists': (b'[[1, 2], [3]]', 'equal lengths'), 'a string': (b'["a"]', 'not a number'),
    'truth': (b'[true]', 'not a number'), 'null': (b'[null]', 'not a number'),
    'an object': (b'{"a": 1}', 'not a number'),
    'deep lists': (b'[' * 9000, 'neither'), 'a huge integer': (b'[1' + b'0' * 400 + b']', 'not a number'),
    'too large for float32': (json.dumps((BATCH.astype(float) + 1e300).tolist()).encode(), 'finite'),
}


@pytest.mark.parametrize('name', GARBAGE)
def test_garbage_is_refused_in_one_line(application, name):
    body, words = GARBAGE[name]
    refused, good = ask(application, infer(body), infer(NPY))
    assert_refused(refused, 400, words)
    assert good.status_code == 200


async def chunks(num_bytes):
    for _ in range(num_bytes // 1000):
        yield b'0' * 1000


def test_a_long_request_is_refused_whether_or_not_it_says_so(application):
    declared, streamed, good = ask(
        application, infer(b'0' * (MAX_REQUEST_BYTES + 1)), infer(chunks(2 * MAX_REQUEST_BYTES)), infer(NPY))
    assert_refused(declared, 413, '20,000 bytes')
    assert_refused(streamed, 413, '20,000 bytes')
    assert good.status_code == 200


# ---- switching, and what it tells

def test_switch_by_name_and_to_the_neighbours():
    with serving.parts() as (application, runtime, _):
        def active_after(to):
            switched, answer = ask(application, switch(to), infer(NPY))
            assert switched.json() == {'active': runtime.stats().active}
            outputs = server.batch_from_npy(answer.content)
            assert portfolios.is_close(outputs, portfolios.expected(BATCH)[answer.headers['x-dnnshifter-variant']])
            return answer.headers['x-dnnshifter-variant']

        assert [active_after(to) for to in ('next', 'previous', 'previous', 'large', 'large')] == [
            'large', 'middle', 'small', 'large', 'large']
        variants = ask(application, ('GET', '/variants', {}))[0].json()
        assert [(variant['name'], variant['accuracy'], variant['is_active']) for variant in variants] == [
            ('small', 0.8, False), ('middle', 0.85, False), ('large', 0.9, True)]
        refused = ask(application, switch('next'), switch('huge'), ('POST', '/switch', {'content': b'{}', **SWITCH}),
                      switch(['large']), ('POST', '/switch', {'content': b'x' * 5000, **SWITCH}),
                      ('POST', '/switch', {'content': b'{"to": "small"}'}), ('GET', '/switch', {}))
        assert [response.status_code for response in refused] == [400, 400, 400, 400, 413, 415, 405]
        assert_refused(refused[1], 400, 'huge', 'small, middle, large')
        assert runtime.stats().active == 'large'


def test_a_switch_that_fails_is_reported_and_the_old_variant_goes_on():
    broken = portfolios.broken('large', ValueError('cannot be inflated'))
    with serving.parts(broken) as (application, _, _):
        failed, answer = ask(application, switch('large'), infer(NPY))
    assert_refused(failed, 500, 'cannot be inflated')
    assert portfolios.is_close(server.batch_from_npy(answer.content), portfolios.expected(BATCH)['middle'])


def test_stats_and_metrics_count_what_happened():
    with serving.parts() as (application, _, _):
        *_, stats, metrics, healthz = ask(
            application, infer(NPY), infer(NPY), infer(b'hello'), switch('next'), infer(NPY),
            ('GET', '/stats', {}), ('GET', '/metrics', {}), ('GET', '/healthz', {}))
    door = stats.json()['door']
    assert (door['num_answered'], door['num_failed'], door['num_refused'], door['num_inside']) == (3, 1, 0, 0)
    assert 0 < door['p50_ms'] <= door['p99_ms']
    assert stats.json()['num_queries'] == {'small': 0, 'middle': 2, 'large': 1}
    samples = dict(line.rsplit(' ', 1) for line in metrics.text.splitlines() if not line.startswith('#'))
    assert samples['dnnshifter_queries_total{variant="middle"}'] == '2'
    assert samples['dnnshifter_active_variant{variant="large"}'] == '1'
    assert samples['dnnshifter_refused_queries_total'] == '0'
    assert metrics.headers['content-type'].startswith('text/plain; version=0.0.4')
    assert (healthz.status_code, healthz.text) == (200, 'ok\n')


# ---- overload

async def overload(address, door, seconds, qps):
    """Open-loop queries: ((status, Retry-After, content) of each, most that were inside, seconds of each /healthz)."""
    async def post(client):
        response = await client.post('/infer', content=NPY)
        return response.status_code, response.headers.get('retry-after'), response.content

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=30) as client:
        begin_s, tasks, most, healthz_s = time.monotonic(), [], 0, []
        for number in range(round(seconds * qps)):
            await asyncio.sleep(max(0.0, begin_s + number / qps - time.monotonic()))
            tasks.append(asyncio.create_task(post(client)))
            most = max(most, door.num_inside)
            if number % 10 == 0:
                asked_s = time.monotonic()
                assert (await client.get('/healthz')).status_code == 200
                healthz_s.append(time.monotonic() - asked_s)
        return await asyncio.gather(*tasks), most, healthz_s


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


class Slower(serving.Slow):
    """So slow that the client can ask four times as much of it, even on a busy machine."""

    delay_s = 0.2


@pytest.mark.parametrize('seconds', [4, pytest.param(60, marks=pytest.mark.full)])
def test_four_times_the_capacity_every_accepted_query_is_answered_and_others_are_refused(loopback, seconds):
    capacity_qps = 2 / Slower.delay_s
    with serving.running(kind=Slower, queue=8, threads=2) as (address, _, door):
        asyncio.run(overload(address, door, 1, 4 * capacity_qps))  # allocates what it needs
        before, already = resident_bytes(), door.stats()
        responses, most, healthz_s = asyncio.run(overload(address, door, seconds, 4 * capacity_qps))
        grown, stats = resident_bytes() - before, door.stats()
    answered = [content for status, _, content in responses if status == 200]
    refused = [retry_after for status, retry_after, _ in responses if status == 429]
    assert len(answered) + len(refused) == len(responses)
    assert len(answered) == stats.num_answered - already.num_answered
    assert len(refused) == stats.num_refused - already.num_refused > len(responses) / 2
    assert set(refused) == {'1'}
    expected = portfolios.expected(BATCH)['middle']
    assert all(portfolios.is_close(server.batch_from_npy(content), expected) for content in answered)
    assert 4 < most <= 8 and stats.num_failed == stats.num_inside == 0
    assert np.median(healthz_s) < 0.5  # the event loop never waits for an answer
    assert grown < 20e6 + 2e3 * len(responses)  # the second part is the client's, which is in this process too


# ---- the command

@pytest.fixture
def package(tmp_path):
    path = tmp_path / 'p.dnns'
    path.write_bytes(serving.profiled_content())
    return path


SLOW_SERVE = """
import sys, time
from dnnshifter_ext import install, runtime
import open_lth.main
quick = runtime.Runtime.answer
runtime.Runtime.answer = lambda self, batch: time.sleep(0.3) or quick(self, batch)
install.install()
open_lth.main.main()
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.full)])
def test_a_signal_drains_what_was_accepted_and_refuses_the_rest(loopback, package, number):
    arguments = ('serve', f'--portfolio={package}', '--port=0', '--backend=onnxruntime', '--threads=1', '--queue=4')
    process = subprocess.Popen([sys.executable, '-c', SLOW_SERVE, *arguments], cwd=helpers.REPOSITORY, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        line = process.stdout.readline()
        address = line[line.index('http://'):].split()[0]
        answers = []
        callers = [threading.Thread(target=lambda: answers.append(httpx.post(f'{address}/infer', content=NPY,
                                                                             timeout=30))) for _ in range(4)]
        with httpx.Client(base_url=address, timeout=30) as client:
            for caller in callers:
                caller.start()
            while client.get('/stats').json()['door']['num_inside'] < 4:
                time.sleep(0.01)
            assert client.post('/infer', content=NPY).status_code == 429
            process.send_signal(number)
            while client.get('/healthz').status_code == 200:
                time.sleep(0.01)
            assert_refused(client.post('/infer', content=NPY), 503, 'shutting down')
        for caller in callers:
            caller.join()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert (process.returncode, err) == (0, '')
    assert '4 queries answered, 2 refused, 0 failed.' in out


def test_the_command_refuses_in_one_line(package, tmp_path):
    install()
    corrupt = tmp_path / 'corrupt.dnns'
    corrupt.write_bytes(serving.profiled_content()[:-1])

    def refused(*words, expected):
        outcome = helpers.run_main('serve', *words)
        helpers.assert_one_line_error(outcome, expected)
        assert outcome.out == ''

    refused(expected='needs --portfolio')
    refused(f'--portfolio={tmp_path / "none"}', expected='there is no file')
    refused(f'--portfolio={tmp_path}', expected='is a folder')
    refused(f'--portfolio={corrupt}', expected='corrupt.dnns')
    for flags, expected in (
            (('--port=http',), '--port'), (('--port=70000',), '65535'), (('--queue=0',), '--queue'),
            (('--threads=-1',), '--threads'), (('--backend=tpu',), 'numpy'), (('--policy=best',), 'qps'),
            (('--policy=latency:0',), '--policy'), (('--policy=fixed:huge',), 'small, middle, large'),
            (('--memory_budget_mb=nan',), '--memory_budget_mb'), (('--max_request_mb=0',), '--max_request_mb'),
            (('--port=0', '--backend=numpy', '--memory_budget_mb=0.001'), 'too few'),
            (('--host=nowhere.invalid', '--port=0'), 'nowhere.invalid')):
        refused(f'--portfolio={package}', *flags, expected=expected)
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        refused(f'--portfolio={package}', f'--port={port}', expected=f'port {port}: Address already in use. Choose')


def test_the_command_starts_without_torch(package, tmp_path):
    """Its own entry, as the engine behind main.py needs torch. It gets as far as a port that is taken."""
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        script = 'import sys; sys.modules["torch"] = None; from dnnshifter_ext.cli import serve; serve.main()'
        process = subprocess.run([sys.executable, '-c', script, f'--portfolio={package}', '--backend=numpy',
                                  f'--port={port}'], cwd=helpers.REPOSITORY, capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == ''
    assert process.stderr.count('\n') == 1 and f'port {port}: Address already in use' in process.stderr


@pytest.mark.parametrize('value', [None, 'x', True, float('nan'), 10**400, -1, [1]])
def test_a_profile_may_hold_anything(value):
    class Packed:
        name, num_bytes, packed_bytes = 'a', 1, 1
        profile = {'accuracy': value, 'compression_ratio': value, 'comparable_latency_ms': value,
                   'latencies': [value, {'device': 'cpu', 'batch_size': 1, 'p50_ms': 3}]}

    assert server.describe(Packed()) == {'name': 'a', 'size_bytes': 1, 'packed_bytes': 1, 'accuracy': None,
                                         'compression_ratio': None, 'latency_ms': 3.0}
