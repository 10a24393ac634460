"""A runtime over HTTP: an ASGI application, and a server of it that drains before it ends.

    POST /infer     a batch as .npy or as JSON (nested lists) -> the outputs in the same format
    POST /switch    {"to": name | "next" | "previous"}: next and previous by size
    GET /           a page for people; /stats, /variants: JSON; /metrics: Prometheus; /healthz

Errors are one line of text. The event loop only moves bytes: what computes runs in threads.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import importlib.resources
import io
import json
import math
import os
import socket
import types

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
import uvicorn

from dnnshifter_ext.package import Package, PackedVariant
from dnnshifter_ext.runtime import profiles
from dnnshifter_ext.runtime.door import ClosedError, Door, DoorStats, FullError
from dnnshifter_ext.runtime.runtime import Runtime
from open_lth.foundations.errors import UserError

VARIANT_HEADER = 'X-DNNShifter-Variant'
NPY, JSON = 'application/x-npy', 'application/json'
MAX_SWITCH_BYTES = 4096
UPLOAD_TIMEOUT_S = 30.0
SHUTDOWN_TIMEOUT_S = 10  # for clients that do not fetch their answers
NEIGHBOURS = {'next': 'larger', 'previous': 'smaller'}
# The page is one file and asks only the server that it came from.
PAGE_POLICY = ("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
               "connect-src 'self'")


class Refusal(Exception):
    """An answer other than 200: a status and one line."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(' '.join(text.split()))
        self.status = status


def app(runtime: Runtime, package: Package, door: Door, *, num_threads: int, max_request_bytes: int) -> Starlette:
    """The application. num_threads: how many queries are in work at once; the others inside the door wait.

    The runtime and the door are the caller's, who closes them.
    """
    service = _Service(runtime, package, door, ThreadPoolExecutor(num_threads, 'infer'), max_request_bytes)
    routes = [Route('/infer', service.infer, methods=['POST']), Route('/switch', service.switch, methods=['POST']),
              Route('/', service.page), Route('/stats', service.stats), Route('/variants', service.variants),
              Route('/healthz', service.healthz), Route('/metrics', service.metrics)]
    return Starlette(routes=routes, exception_handlers={Refusal: _refuse})


@dataclass(frozen=True, eq=False)
class _Service:
    runtime: Runtime
    package: Package
    door: Door
    threads: ThreadPoolExecutor
    max_request_bytes: int

    async def infer(self, request: Request) -> Response:
        try:
            visit = self.door.enter()
        except FullError:
            raise Refusal(429, 'too many queries are waiting, try again soon') from None
        except ClosedError:
            raise Refusal(503, 'the server is shutting down') from None
        with visit:  # from here on there is room for the body, and an answer
            body = await _body(request, self.max_request_bytes)
            content, kind, visit.answered_by = await asyncio.get_running_loop().run_in_executor(
                self.threads, self._answer, body)
        return Response(content, media_type=kind, headers={VARIANT_HEADER: visit.answered_by})

    def _answer(self, body: bytes) -> tuple[bytes, str, str]:
        """(the answer, its media type, the variant), in one of the threads."""
        is_npy = body.startswith(np.lib.format.MAGIC_PREFIX)
        try:
            batch = batch_from_npy(body) if is_npy else batch_from_json(body)
            if not np.isfinite(batch).all():
                raise ValueError('a batch holds finite numbers only')
            answer = self.runtime.answer(batch)
            content = npy(answer.outputs) if is_npy else json.dumps(answer.outputs.tolist(), allow_nan=False).encode()
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        return content, NPY if is_npy else JSON, answer.variant

    async def switch(self, request: Request) -> Response:
        # A page from elsewhere cannot send this type without asking first, and is not answered.
        if request.headers.get('content-type', '').partition(';')[0].strip() != JSON:
            raise Refusal(415, f'send {JSON}')
        try:
            wanted = json.loads(await _body(request, MAX_SWITCH_BYTES))['to']
            if not isinstance(wanted, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Refusal(400, 'send {"to": NAME}, with the name of a variant, "next" or "previous"') from None
        names = [variant.name for variant in self.package.variants]
        target = wanted if wanted in names else NEIGHBOURS.get(wanted, wanted)
        try:
            await asyncio.to_thread(self.runtime.switch_to, target)
        except UserError as error:
            raise Refusal(400, str(error)) from error
        except Exception as error:  # the old variant goes on
            raise Refusal(500, f'the switch failed: {error or type(error).__name__}') from error
        return JSONResponse({'active': self.runtime.stats().active})

    async def page(self, request: Request) -> Response:
        return Response(_page(), media_type='text/html', headers={'Content-Security-Policy': PAGE_POLICY})

    async def stats(self, request: Request) -> Response:
        return JSONResponse(self.runtime.stats().to_dict() | {'door': self.door.stats().to_dict()})

    async def variants(self, request: Request) -> Response:
        active = self.runtime.stats().active
        return JSONResponse([describe(variant) | {'is_active': variant.name == active}
                             for variant in self.package.variants])

    async def healthz(self, request: Request) -> Response:
        if self.door.is_closed:
            raise Refusal(503, 'the server is shutting down')
        return PlainTextResponse('ok\n')

    async def metrics(self, request: Request) -> Response:
        return Response(self.runtime.prometheus() + door_metrics(self.door.stats()),
                        media_type='text/plain; version=0.0.4')


class Server(uvicorn.Server):
    """After SIGTERM or SIGINT it answers 503 until all queries inside the door are answered, then ends by returning.

    A second signal ends it at once, with those unanswered.
    """

    def __init__(self, application: Starlette, door: Door) -> None:
        super().__init__(uvicorn.Config(application, log_level='warning', access_log=False, lifespan='off',
                                        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT_S))
        self._door = door

    def handle_exit(self, sig: int, frame: types.FrameType | None) -> None:
        if self._door.is_closed:
            os._exit(128 + sig)
        self.drain()

    def drain(self) -> None:
        """As the first signal does; may be called from any thread."""
        self._door.close()

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or (self._door.is_closed and self._door.num_inside == 0)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. port: 0 for any. Raises UserError when the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:
        is_address = isinstance(error, (socket.gaierror, UnicodeError))
        reason = 'there is no such address' if is_address else os.strerror(error.errno)  # without Python's addition
        raise UserError(f'cannot listen on {host}, port {port}: {reason}. Choose others with --host and --port (0 for '
                        'any)') from error


def batch_from_npy(body: bytes) -> np.ndarray:
    """The array in an .npy file. Raises ValueError, before anything is allocated, when it is not one."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, is_fortran, dtype = read_header[version](file)
    except Exception as error:  # numpy raises many types for a damaged header
        raise ValueError('the body is a damaged .npy file') from error
    if dtype != np.float32:
        raise ValueError(f'a batch is float32, not {dtype}')
    values = memoryview(body)[file.tell():]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f'the .npy file has {len(values)} bytes of data, which is not what its shape {shape} takes')
    return np.frombuffer(values, dtype).reshape(shape, order='F' if is_fortran else 'C').copy()  # may be written to


def batch_from_json(body: bytes) -> np.ndarray:
    """Nested lists of numbers as float32. Raises ValueError when they are not that."""
    try:
        array = np.asarray(json.loads(body))
    except (ValueError, RecursionError) as error:
        raise ValueError('the body is neither an .npy file nor nested JSON lists of equal lengths') from error
    if array.dtype.kind not in 'iuf':
        raise ValueError('the JSON lists hold something that is not a number')
    with np.errstate(over='ignore'):
        return array.astype(np.float32)


def npy(array: np.ndarray) -> bytes:
    """The array as an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def describe(variant: PackedVariant) -> dict:
    """What is known of a variant, as JSON has it. accuracy, a fraction, latency_ms, of one image: None if unknown."""
    return {'name': variant.name, 'size_bytes': variant.num_bytes, 'packed_bytes': variant.packed_bytes,
            'accuracy': profiles.accuracy(variant), 'compression_ratio': profiles.compression_ratio(variant),
            'latency_ms': profiles.latency_ms(variant)}


def door_metrics(stats: DoorStats) -> str:
    """The door's counters in Prometheus' text exposition format."""
    metrics = {'refused_queries_total': ('counter', 'Queries that were not let in.', stats.num_refused),
               'inside_queries': ('gauge', 'Queries in work or waiting.', stats.num_inside),
               'max_inside_queries': ('gauge', 'How many of them there may be.', stats.max_queries),
               'arrivals_per_second': ('gauge', 'Over the last second, refused ones too.', stats.qps)}
    return ''.join(f'# HELP dnnshifter_{name} {text}\n# TYPE dnnshifter_{name} {kind}\ndnnshifter_{name} {value:.10g}\n'
                   for name, (kind, text, value) in metrics.items())


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body of the request; a Refusal when it is too long or too slow."""
    too_long = Refusal(413, f'the request is longer than {max_bytes:,} bytes')
    declared = request.headers.get('content-length', '')
    if declared.isdigit() and int(declared) > max_bytes:
        raise too_long

    async def read() -> bytes:
        chunks, num_bytes = [], 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > max_bytes:
                raise too_long
            chunks.append(chunk)
        return b''.join(chunks)

    try:
        return await asyncio.wait_for(read(), UPLOAD_TIMEOUT_S)
    except asyncio.TimeoutError:
        raise Refusal(408, f'the request took longer than {UPLOAD_TIMEOUT_S:g} s to arrive') from None
    except ClientDisconnect:
        raise Refusal(400, 'the client left') from None


def _refuse(request: Request, refusal: Refusal) -> Response:
    headers = {'Retry-After': '1'} if refusal.status in (429, 503) else None
    return PlainTextResponse(f'{refusal}\n', refusal.status, headers)


def _page() -> str:
    return importlib.resources.files(__package__).joinpath('page.html').read_text(encoding='utf-8')
