"""A server to be asked, in a thread of the test: over loopback, or as an application without any socket."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time

import httpx

from dnnshifter_ext.package import Package, Variant, read, write
from dnnshifter_ext.runtime import Runtime, server
from dnnshifter_ext.runtime.door import AtTheDoor, Door
from dnnshifter_ext.runtime.policies import Fixed
from tests.dnnshifter_ext.runtime import portfolios

MAX_REQUEST_BYTES = 20_000
PROFILES = {'small': (0.8, 64.0, 1.0), 'middle': (0.85, 16.0, 2.0), 'large': (0.9, 4.0, 4.0)}


@functools.cache
def profiled_content() -> bytes:
    """The package of `portfolios` with an accuracy, a compression ratio and a latency in each profile."""
    return write([
        Variant(packed.name, packed.structure(), {name: packed.dense(name) for name in packed.tensors},
                packed.profile | dict(zip(('accuracy', 'compression_ratio', 'comparable_latency_ms'),
                                          PROFILES[packed.name])))
        for packed in portfolios.package().variants])


class Slow(Runtime):
    """Takes at least `delay_s` for each query, in which other threads may go on."""

    delay_s = 0.05

    def answer(self, batch):
        time.sleep(self.delay_s)
        return super().answer(batch)


@contextlib.contextmanager
def parts(package: Package | None = None, kind: type[Runtime] = Runtime, *, queue: int = 8, threads: int = 2):
    """(application, runtime, door)"""
    package = package or read(profiled_content())
    door = Door([variant.name for variant in package.variants], queue)
    with kind(package, backend='numpy', policy=AtTheDoor(Fixed(), door), num_threads=1) as runtime:
        application = server.app(runtime, package, door, num_threads=threads, max_request_bytes=MAX_REQUEST_BYTES)
        yield application, runtime, door


def ask(application, *requests) -> list[httpx.Response]:
    """The answers to (method, path, {keywords of httpx}), one after the other."""
    async def answers():
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url='http://test') as client:
            return [await client.request(method, path, **keywords) for method, path, keywords in requests]
    return asyncio.run(answers())


@contextlib.contextmanager
def running(**keywords):
    """(address, runtime, door) of a server that listens on loopback, drained at the end."""
    with parts(**keywords) as (application, runtime, door), server.listen('127.0.0.1', 0) as sock:
        listener = server.Server(application, door)
        thread = threading.Thread(target=listener.run, kwargs={'sockets': [sock]})
        thread.start()
        try:
            yield f'http://127.0.0.1:{sock.getsockname()[1]}', runtime, door
        finally:
            listener.drain()
            thread.join()
