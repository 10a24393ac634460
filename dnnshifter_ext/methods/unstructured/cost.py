"""What a piece of work costs: seconds, and the most memory it needs beyond what was in use before."""

from __future__ import annotations

from collections.abc import Callable
import ctypes
from dataclasses import dataclass
import gc
import time
from typing import TypeVar

import torch

Result = TypeVar('Result')


@dataclass(frozen=True)
class Cost:
    """memory_kind: 'rss_growth', of the process's resident memory (CPU), or 'cuda_allocated', by the allocator (GPU).

    peak_memory_bytes is None where the system does not tell (CPU: any but Linux). num_threads: torch's.
    """

    time_s: float
    peak_memory_bytes: int | None
    memory_kind: str
    device: str
    num_threads: int


def measured(work: Callable[[], Result], device: torch.device) -> tuple[Result, Cost]:
    """The result of work() on a device, and what it cost."""
    on_gpu = device.type == 'cuda'
    gc.collect()  # garbage that is freed meanwhile would hide what the work needs
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        before = _resident_bytes() if _reset_peak_resident() else None
    start_s = time.perf_counter()
    result = work()
    if on_gpu:
        torch.cuda.synchronize(device)
    time_s = time.perf_counter() - start_s
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else _resident_bytes('VmHWM')
    return result, Cost(
        time_s=time_s, peak_memory_bytes=None if before is None or peak is None else max(0, peak - before),
        memory_kind='cuda_allocated' if on_gpu else 'rss_growth', device=device.type,
        num_threads=torch.get_num_threads())


def _reset_peak_resident() -> bool:
    """Makes Linux forget the process's highest resident memory so far; False where that is not possible."""
    try:
        with open('/proc/self/clear_refs', 'w') as file:
            # What was freed but kept by malloc would be used again without a trace.
            if hasattr(process := ctypes.CDLL(None), 'malloc_trim'):  # glibc
                process.malloc_trim(0)
            file.write('5')
    except OSError:
        return False
    return True


def _resident_bytes(field: str = 'VmRSS') -> int | None:
    """The resident memory of this process: now ('VmRSS') or at its highest ('VmHWM')."""
    try:
        with open('/proc/self/status') as file:
            [line] = (line for line in file if line.startswith(f'{field}:'))
    except (OSError, ValueError):
        return None
    return int(line.split()[1]) * 1024
