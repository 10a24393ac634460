"""Module 6: the portfolio, one row per pruning level: as a table, as CSV, as a figure; and its Pareto front.

Latencies are medians. Speed-up is the latency of the level's sparse model (batch norms fused, all channels)
over that of its pruned model, measured in turn in the same run. A speed-up of 1.00 means no gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from dnnshifter_ext.profiler import Profile

MIB = 2**20
_SPARSE = dict(linestyle='--', marker='s', markersize=8, markerfacecolor='none')
_PRUNED = dict(linestyle='-', marker='o', markersize=4)


@dataclass(frozen=True)
class Row:
    """One level: `sparse` is the masked model with fused batch norms, `pruned` the converted one.

    compression_ratio: prunable weights over those the mask keeps (1 = dense).
    """

    level: int
    compression_ratio: float
    sparse: Profile
    pruned: Profile
    pruning_time_ms: float
    max_abs_difference: float
    changed_predictions: int


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row, in the order of the levels; the unit is part of each column's name.

    Column pareto_optimal: no other level is as accurate, small and fast (CPU, batch 1) and better in one.
    """
    frame = pd.DataFrame([_columns(row) for row in sorted(rows, key=lambda row: row.level)])
    criteria = {'accuracy_pruned': -1, 'size_mib': 1, 'cpu_latency_ms_batch_1': 1}  # 1: less is better
    costs = [sign * frame[name].astype(float).fillna(0) for name, sign in criteria.items() if name in frame]
    frame['pareto_optimal'] = pareto_front(np.stack(costs, axis=1))
    return frame


def pareto_front(costs: np.ndarray) -> np.ndarray:
    """Which rows of `costs` (rows, criteria; less is better) no other row beats: bool, (rows,).

    A row beats another if it costs no more in anything and less in something; equal rows all stay.
    """
    costs = np.asarray(costs, dtype=float)
    at_most = (costs[:, None, :] <= costs[None, :, :]).all(2)
    cheaper = (costs[:, None, :] < costs[None, :, :]).any(2)
    return ~(at_most & cheaper).any(0)


def text_table(frame: pd.DataFrame) -> str:
    """The portfolio in fixed columns, without a line break at the end."""
    titles = {
        'level': ('level', '{:d}'),
        'compression_ratio': ('ratio', '{:.1f}'),
        'accuracy_sparse': ('acc sparse %', '{:.2%}'),
        'accuracy_pruned': ('acc pruned %', '{:.2%}'),
        'params_stored': ('params', '{:,d}'),
        'params_nonzero': ('non-zero', '{:,d}'),
        'size_mib': ('MiB', '{:.2f}'),
        'cpu_latency_ms_batch_1': ('CPU ms b1', '{:.2f}'),
        'cpu_latency_ms_batch_128': ('CPU ms b128', '{:.1f}'),
        'cpu_speedup_batch_1': ('x b1', '{:.2f}'),
        'cpu_speedup_batch_128': ('x b128', '{:.2f}'),
        'pruning_time_ms': ('prune ms', '{:.0f}'),
    }
    columns = []
    for name, (title, pattern) in titles.items():
        if name in frame:
            cells = ['-' if pd.isna(value) else pattern.format(value).rstrip('%') for value in frame[name]]
            columns.append(_right_aligned([title, *cells]))
    columns.append(['', *('*' if optimal else ' ' for optimal in frame['pareto_optimal'])])
    lines = ['  '.join(cells).rstrip() for cells in zip(*columns, strict=True)]
    legend = '* on the Pareto front of accuracy, size and CPU latency at batch 1'
    return '\n'.join([lines[0], '-' * max(map(len, lines)), *lines[1:], legend])


def figure(frame: pd.DataFrame, title: str = '') -> Figure:
    """Accuracy (above) and CPU latency (below, bars from p10 to p90) against the compression ratio."""
    canvas = Figure(figsize=(7, 6.5), layout='constrained')
    accuracy, latency = canvas.subplots(2, 1, sharex=True)
    ratio = frame['compression_ratio']
    accuracy.plot(ratio, frame['accuracy_sparse'] * 100, **_SPARSE, color='0.5', label='sparse (masked)')
    accuracy.plot(ratio, frame['accuracy_pruned'] * 100, **_PRUNED, color='tab:blue',
                  label='pruned (smaller, dense)')
    accuracy.set_ylabel('top-1 accuracy (%)')
    for batch_size, color in ((1, 'tab:orange'), (128, 'tab:green')):
        name = f'cpu_latency_ms_batch_{batch_size}'
        if name not in frame:
            continue
        per_image = frame[name] / batch_size
        below, above = (abs(frame[f'{name}_{decile}'] / batch_size - per_image) for decile in ('p10', 'p90'))
        latency.plot(ratio, frame[f'{name}_sparse'] / batch_size, **_SPARSE, color=color, alpha=0.5,
                     label=f'sparse, batch {batch_size}')
        latency.errorbar(ratio, per_image, (below, above), **_PRUNED, color=color, capsize=2, elinewidth=1,
                         label=f'pruned, batch {batch_size}')
    latency.set_yscale('log', base=10)
    latency.set_ylabel('CPU latency (ms per image)')
    low, high = latency.get_ylim()
    latency.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    if high < 20 * low:  # over more decades the labels between would run into each other
        latency.yaxis.set_minor_formatter(lambda value, _: f'{value:g}')
    latency.set_xscale('log', base=2)
    latency.set_xlabel('compression ratio (prunable weights / weights kept)')
    latency.xaxis.set_major_formatter(lambda value, _: f'{value:g}x')
    for axes in (accuracy, latency):
        axes.grid(which='both', alpha=0.3)
        axes.legend(fontsize='small')
    canvas.suptitle(title)
    return canvas


def _columns(row: Row) -> dict:
    columns = {
        'level': row.level,
        'compression_ratio': row.compression_ratio,
        'accuracy_sparse': row.sparse.accuracy,
        'accuracy_pruned': row.pruned.accuracy,
        'params_stored_sparse': row.sparse.num_params,
        'params_stored': row.pruned.num_params,
        'params_nonzero': row.pruned.num_nonzero_params,
        'size_mib_sparse': row.sparse.size_bytes / MIB,
        'size_mib': row.pruned.size_bytes / MIB,
    }
    for latency in row.pruned.latencies:
        before = row.sparse.latency(latency.device, latency.batch_size)
        suffix = f'batch_{latency.batch_size}'
        columns |= {
            f'{latency.device}_latency_ms_{suffix}_sparse': before.median_ms,
            f'{latency.device}_latency_ms_{suffix}': latency.median_ms,
            f'{latency.device}_latency_ms_{suffix}_p10': latency.p10_ms,
            f'{latency.device}_latency_ms_{suffix}_p90': latency.p90_ms,
            f'{latency.device}_speedup_{suffix}': before.median_ms / latency.median_ms,
        }
    for memory in row.pruned.peak_memory:
        columns[f'{memory.device}_peak_memory_mib_batch_{memory.batch_size}'] = memory.peak_bytes / MIB
    return columns | {
        'pruning_time_ms': row.pruning_time_ms,
        'max_abs_difference': row.max_abs_difference,
        'changed_predictions': row.changed_predictions,
    }


def _right_aligned(cells: list[str]) -> list[str]:
    width = max(map(len, cells))
    return [cell.rjust(width) for cell in cells]
