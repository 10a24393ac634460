"""What a piece of work costs."""

import gc
import time

import pytest
import torch

from dnnshifter_ext.methods.unstructured import cost

CPU = torch.device('cpu')


def test_seconds_and_the_most_memory_beyond_what_was_in_use():
    held = torch.ones(8_000_000)

    def work():
        time.sleep(0.05)
        first = torch.ones(16_000_000)  # 64 MB, and freed
        return float(first.sum())

    result, measured = cost.measured(work, CPU)
    assert result == 16_000_000 and held.sum()
    assert 0.05 <= measured.time_s < 5
    assert 60e6 < measured.peak_memory_bytes < 90e6
    assert (measured.memory_kind, measured.device, measured.num_threads) == ('rss_growth', 'cpu', 1)


def test_an_earlier_peak_does_not_count():
    float(torch.ones(32_000_000).sum())
    assert cost.measured(lambda: None, CPU)[1].peak_memory_bytes < 20e6


def test_garbage_of_before_hides_nothing():
    cycle = [torch.ones(32_000_000)]
    cycle.append(cycle)
    del cycle

    def work():
        gc.collect()  # as may happen at any time
        return float(torch.ones(16_000_000).sum())

    assert 60e6 < cost.measured(work, CPU)[1].peak_memory_bytes < 90e6


def test_memory_that_was_freed_but_kept_hides_nothing():
    torch.ones(7_900_000)  # once freed, malloc keeps blocks of this size to itself
    last = [torch.ones(5_000_000) for _ in range(6)][-1]  # the five before lie below it, free

    assert 60e6 < cost.measured(lambda: float(torch.ones(16_000_000).sum()), CPU)[1].peak_memory_bytes < 90e6
    assert last.sum()


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    def refuse(*args):
        raise OSError('no /proc')

    monkeypatch.setattr(cost, 'open', refuse, raising=False)
    assert cost.measured(lambda: 3, CPU)[1].peak_memory_bytes is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_the_allocator_tells():
    device = torch.device('cuda')
    torch.ones(4_000_000, device=device)
    measured = cost.measured(lambda: torch.ones(16_000_000, device=device).sum(), device)[1]
    assert 64e6 <= measured.peak_memory_bytes < 70e6 and measured.memory_kind == 'cuda_allocated'
