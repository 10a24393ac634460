"""What a replay found: tables as rows, as text, and the figure. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from dnnshifter_ext.runtime.replay import Run, Summary, quantile

MIB = 2**20
BIN_S = 1.0
SWITCHER = 'switcher'
_COLUMNS = ('', 'right in time %', 'in time %', 'refused %', 'p50 ms', 'p99 ms', 'p99.9 ms', 'switches/min',
            'mean MiB', 'worst MiB')
_MEMORY_COLORS = {'package': 'tab:blue', 'active': 'tab:green', 'ahead': 'tab:purple', 'scratch': 'tab:gray'}


def timeline(runs: Mapping[str, Run], names: Sequence[str], arrivals_s: np.ndarray, duration_s: float) -> list[dict]:
    """One row per run and second: what was asked, who answered, how long it took, what memory was used.

    Quantiles are of the queries that arrived in that second: None for none, infinite when that query was refused.
    """
    rows = []
    for label, run in runs.items():
        for begin_s in np.arange(0, duration_s, BIN_S):
            latencies_ms = run.latencies_ms[_within(arrivals_s, begin_s)]
            samples = _within(run.times_s, begin_s)
            rows.append({
                'run': label, 'time_s': float(begin_s),
                'offered_qps': len(latencies_ms) / min(BIN_S, duration_s - begin_s),
                'active': names[run.active[samples][-1]],
                'p50_ms': quantile(latencies_ms, 0.5) if len(latencies_ms) else None,
                'p99_ms': quantile(latencies_ms, 0.99) if len(latencies_ms) else None,
                'num_refused': int(np.isinf(latencies_ms).sum()),
                'memory_bytes': int(run.total_bytes[samples].max())})
    return rows


def cells(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """The comparison as text, the header first."""
    return [_COLUMNS, *((
        summary.label, f'{100 * summary.effective_accuracy:.2f}', f'{100 * summary.on_time:.2f}',
        f'{100 * summary.refused:.2f}', _ms(summary.p50_ms), _ms(summary.p99_ms), _ms(summary.p999_ms),
        f'{summary.switches_per_minute:.1f}', f'{summary.mean_memory_bytes / MIB:.2f}',
        f'{summary.peak_memory_bytes / MIB:.2f}') for summary in summaries)]


def text_table(summaries: Sequence[Summary]) -> str:
    """The comparison, aligned."""
    rows = cells(summaries)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return '\n'.join('  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(
        row[1:], widths[1:]))]) for row in rows)


def figure(runs: Mapping[str, Run], summaries: Sequence[Summary], names: Sequence[str], arrivals_s: np.ndarray,
           duration_s: float, deadline_ms: float, title: str) -> Figure:
    """Load and active variant, latency, memory, all over time, and the comparison. The switcher is the first run."""
    rows = timeline(runs, names, arrivals_s, duration_s)
    canvas = Figure(figsize=(11.5, 10.5 + 0.22 * len(runs)), layout='constrained')
    grid = canvas.add_gridspec(4, 1, height_ratios=(2.6, 2.6, 2, 0.7 + 0.28 * len(runs)))
    load = canvas.add_subplot(grid[0])
    latency = canvas.add_subplot(grid[1], sharex=load)
    memory = canvas.add_subplot(grid[2], sharex=load)
    table = canvas.add_subplot(grid[3])
    colors = _colors(runs)
    _draw_load(load, rows, runs[SWITCHER], names, duration_s)
    _draw_latency(latency, rows, deadline_ms, colors)
    _draw_memory(memory, runs, colors)
    memory.set_xlabel('time (s)')
    load.set_xlim(0, duration_s)
    for axes in (load, latency, memory):
        axes.grid(alpha=0.3)
    _draw_table(table, cells(summaries))
    canvas.suptitle(title, fontsize='medium')
    return canvas


def _within(times_s: np.ndarray, begin_s: float) -> slice:
    return slice(*np.searchsorted(times_s, (begin_s - 1e-9, begin_s + BIN_S - 1e-9)))


def _ms(value: float) -> str:
    return 'refused' if math.isinf(value) else f'{value:.4g}'


def _colors(runs: Mapping[str, Run]) -> dict[str, object]:
    from matplotlib import colormaps
    fixed = [label for label in runs if label != SWITCHER]
    shades = colormaps['viridis'](np.linspace(0.15, 0.9, len(fixed)))
    return {SWITCHER: 'tab:red'} | dict(zip(fixed, shades))


def _draw_load(axes: Axes, rows: list[dict], run: Run, names: Sequence[str], duration_s: float) -> None:
    rows = [row for row in rows if row['run'] == SWITCHER]
    times_s = [row['time_s'] for row in rows] + [duration_s]
    qps = [row['offered_qps'] for row in rows]
    axes.stairs(qps, times_s, fill=True, color='tab:blue', alpha=0.25, label='offered load')
    axes.set_ylabel('offered load (queries/s)')
    axes.set_ylim(0, 1.15 * max(qps))
    variants = axes.twinx()
    variants.step(run.times_s, run.active, where='post', color='tab:red', label='active variant of the switcher')
    variants.set_yticks(range(len(names)), names)
    variants.set_ylim(-0.5, len(names) - 0.5)
    variants.set_ylabel('active variant, the smallest below')
    handles = [*axes.get_legend_handles_labels()[0], *variants.get_legend_handles_labels()[0]]
    axes.legend(handles, [handle.get_label() for handle in handles], loc='upper left', fontsize='small')


def _draw_latency(axes: Axes, rows: list[dict], deadline_ms: float, colors: Mapping[str, object]) -> None:
    finite = [row['p99_ms'] for row in rows if row['p99_ms'] is not None and math.isfinite(row['p99_ms'])]
    top_ms = 2 * max([deadline_ms, *finite])
    for label, color in colors.items():
        chosen = [row for row in rows if row['run'] == label and row['p99_ms'] is not None]
        axes.plot([row['time_s'] + BIN_S / 2 for row in chosen], [min(row['p99_ms'], top_ms) for row in chosen],
                  color=color, label=label, linewidth=2 if label == SWITCHER else 1,
                  zorder=3 if label == SWITCHER else 2)
    axes.axhline(deadline_ms, color='black', linestyle='--', linewidth=1, label=f'deadline, {deadline_ms:.3g} ms')
    refused = any(row['num_refused'] for row in rows)
    axes.set_yscale('log')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
    axes.set_ylabel('p99 of the latency (ms)' + (',\nat the top edge: refused' if refused else ''))
    axes.set_ylim(top=top_ms)
    axes.legend(loc='center left', bbox_to_anchor=(1.005, 0.5), fontsize='small')


def _draw_memory(axes: Axes, runs: Mapping[str, Run], colors: Mapping[str, object]) -> None:
    run = runs[SWITCHER]
    layers = {name: values / MIB for name, values in run.memory_bytes.items() if values.any()}
    axes.stackplot(run.times_s, layers.values(), labels=[f'switcher: {name}' for name in layers], step='post',
                   colors=[_MEMORY_COLORS[name] for name in layers], alpha=0.45)
    for label, color in colors.items():
        if label != SWITCHER:
            axes.step(runs[label].times_s, runs[label].total_bytes / MIB, where='post', color=color, linewidth=1,
                      linestyle=':', label=label)
    axes.set_ylabel('memory of the models (MiB)')
    axes.set_ylim(bottom=0)
    axes.legend(loc='center left', bbox_to_anchor=(1.005, 0.5), fontsize='small')


def _draw_table(axes: Axes, rows: list[tuple[str, ...]]) -> None:
    axes.set_axis_off()
    drawn = axes.table(rows[1:], colLabels=rows[0], loc='upper center', cellLoc='right', edges='horizontal')
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(8.5)
    drawn.scale(1, 1.35)
    drawn.auto_set_column_width(range(len(rows[0])))
    for (row, column), cell in drawn.get_celld().items():
        cell.set_text_props(weight='bold' if row <= 1 and (row == 0 or column >= 0) else 'normal')
        if column == 0:
            cell.set_text_props(ha='left')
