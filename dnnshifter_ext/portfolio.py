"""Module 6: the portfolio, one row per pruning level: as a table, as CSV, as a figure; which levels are worth keeping.

Latencies are those of torch (eager) unless a column names another back end. Speed-ups are those of a level's pruned
model over its sparse model, timed in turn: unfused, as it was trained, and fused, with its batch norms folded into the
convolutions, as anybody would deploy it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import itertools
import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
import numpy as np
import pandas as pd

from dnnshifter_ext.profiler import MIN_GAIN, Profile, Speedup

MIB = 2**20
# A variant must be this much smaller or faster than a more accurate one. Less is no reason to store and to switch
# between both; and timing two copies of one model shows up to 5 % that is not there.
SIZE_TOLERANCE = 0.02
LATENCY_TOLERANCE = 0.05
# 0.1 points of accuracy, 10 images of 10,000: with size and latency alike, two variants are near-duplicates.
ACCURACY_TOLERANCE = 0.001

_BATCH_SIZES = (1, 128)  # those shown
# How a pruned model is run -> in words.
FORMS = {'pruned': 'all layers dense', 'hybrid': 'hybrid'}

_SPARSE = dict(linestyle='--', marker='s', markersize=8, markerfacecolor='none')
_PRUNED = dict(linestyle='-', marker='o', markersize=4)
_HYBRID = dict(linestyle=':', marker='^', markersize=6, markerfacecolor='white')


@dataclass(frozen=True)
class Row:
    """One level: its sparse model as trained (`unfused`), the same with fused batch norms, and the converted one.

    pruned: the converted model with all layers dense; hybrid: with `num_sparse_layers` of them on sparse kernels, None
    if dense is faster everywhere.
    compression_ratio: prunable weights over those the mask keeps (1 = dense). changed_predictions of `pruned` are
    against `unfused`. num_params_paper_rule: what would be stored if only all-zero filters went, as published.
    """

    level: int
    compression_ratio: float
    unfused: Profile
    fused: Profile
    pruned: Profile
    num_params_paper_rule: int
    conversion_time_ms: float
    max_abs_difference: float
    hybrid: Profile | None = None
    num_sparse_layers: int = 0


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per row, in the order of the levels; the unit is part of each column's name.

    The rows are levels of one experiment; in each the models were profiled together, unfused, fused, pruned, hybrid, on
    the CPU at batch 1 at least (LookupError otherwise). Columns of the hybrid are those of the pruned model where there
    is no hybrid: that is what would be run. By it the levels are chosen.
    comparable_latency_ms: on the CPU at batch 1, as if all levels had been timed in the same minutes. The fused model
    is the same dense work at every level: its p50 (the median over the levels) over the level's speed-up.
    pareto_optimal, near_duplicate_of (a level): see `choose`; search_efficiency: optimal variants over all.
    """
    rows = sorted(rows, key=lambda row: row.level)
    frame = pd.DataFrame([_columns(row) for row in rows])
    fused_ms = np.median([row.fused.latency('cpu', 1).p50_ms for row in rows])
    frame['comparable_latency_ms'] = [
        fused_ms / _as_run(row).latency('cpu', 1).speedup_over['fused'].median for row in rows]
    accuracy = frame['accuracy_pruned'].astype(float).fillna(0)
    optimal, twin = choose(
        accuracy.to_numpy(), frame['size_mib_hybrid'].to_numpy(), frame['comparable_latency_ms'].to_numpy())
    frame['pareto_optimal'] = optimal
    frame['near_duplicate_of'] = pd.array(
        [rows[index].level if index >= 0 else None for index in twin], dtype='Int64')
    frame['search_efficiency'] = optimal.mean()
    return frame


def choose(accuracy: np.ndarray, size: np.ndarray, latency: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(optimal, near_duplicate_of) for each variant: bool, and the index of the optimal variant it is like, or -1.

    From the most accurate variant down (the smaller, then the faster one first): a variant is optimal unless an
    optimal one before it, and so at least as accurate, is no more than SIZE_TOLERANCE larger and LATENCY_TOLERANCE
    slower. Without the tolerances this is the Pareto front; with them noise puts no variant on it, and each variant
    left out has one on the front that does for it. It is a near-duplicate of such a one if all three are alike.
    """
    near_duplicate_of = np.full(len(size), -1)
    optimal: list[int] = []
    for index in np.lexsort((latency, size, -accuracy)):
        size_ratio, latency_ratio = size[optimal] / size[index], latency[optimal] / latency[index]
        does_for_it = (size_ratio <= 1 + SIZE_TOLERANCE) & (latency_ratio <= 1 + LATENCY_TOLERANCE)
        is_like_it = (does_for_it & (size_ratio >= 1 / (1 + SIZE_TOLERANCE))
                      & (latency_ratio >= 1 / (1 + LATENCY_TOLERANCE))
                      & (accuracy[optimal] - accuracy[index] <= ACCURACY_TOLERANCE))
        if is_like_it.any():
            near_duplicate_of[index] = optimal[is_like_it.argmax()]
        elif not does_for_it.any():
            optimal.append(index)
    return np.isin(np.arange(len(size)), optimal), near_duplicate_of


def text_table(frame: pd.DataFrame) -> str:
    """The portfolio in fixed columns with its legend, without a line break at the end."""
    counts = _table([
        ('', 'level', [str(level) for level in frame['level']]),
        ('', 'ratio', [f'{ratio:.1f}' for ratio in frame['compression_ratio']]),
        ('accuracy %', 'sparse', _percent(frame['accuracy_sparse'])),
        ('', 'pruned', _percent(frame['accuracy_pruned'])),
        ('', 'changed', ['-' if pd.isna(number) else f'{number:.0f}' for number in frame['changed_predictions']]),
        ('parameters', 'paper', map(_short, frame['params_stored_paper_rule'])),
        ('', 'stored', map(_short, frame['params_stored'])),
        ('', 'non-zero', map(_short, frame['params_nonzero'])),
        ('MiB', 'dense', map(_three_digits, frame['size_mib'])),
        ('', 'hybrid', map(_three_digits, frame['size_mib_hybrid'])),
        ('sparse', 'layers', map(str, frame['num_sparse_layers'])),
        ('', 'FLOPs', map(_short, frame['num_flops'])),
        ('', 'conv. ms', map(_three_digits, frame['conversion_time_ms'])),
        ('', '', ['*' if optimal else '' if pd.isna(twin) else f'= {twin}'
                  for optimal, twin in zip(frame['pareto_optimal'], frame['near_duplicate_of'], strict=True)]),
    ])
    forms = FORMS if frame['num_sparse_layers'].any() else ('pruned',)
    latencies = [_latency_table(frame, where, form) for where in _measured(frame) for form in forms
                 if any(_latency_column(where, batch_size, form) in frame for batch_size in _BATCH_SIZES)]
    return '\n\n'.join([counts, *latencies, _legend(frame)])


def figure(frame: pd.DataFrame, title: str = '') -> Figure:
    """Accuracy against CPU latency with the front; beside it both against the compression ratio.

    Each variant is labelled with its compression ratio. The latency on the left is `comparable_latency_ms`; that on the
    right is as measured, p50 with bars up to p95.
    """
    canvas = Figure(figsize=(13, 6.5), layout='constrained')
    axes = canvas.subplot_mosaic([['front', 'accuracy'], ['front', 'latency']], width_ratios=[1.4, 1])
    axes['accuracy'].sharex(axes['latency'])
    axes['accuracy'].tick_params(labelbottom=False)
    _draw_accuracy(axes['accuracy'], frame)
    _draw_latency(axes['latency'], frame)
    canvas.suptitle(title)
    _draw_front(axes['front'], frame)  # last: its labels are placed in the final layout
    return canvas


def _columns(row: Row) -> dict:
    columns = {
        'level': row.level,
        'compression_ratio': row.compression_ratio,
        'accuracy_sparse': row.unfused.accuracy,
        'accuracy_pruned': row.pruned.accuracy,
        'changed_predictions': row.pruned.changed_predictions,
        'num_test_examples': row.pruned.num_examples,
        'max_abs_difference': row.max_abs_difference,
        'params_stored_sparse': row.fused.num_params,
        'params_stored_paper_rule': row.num_params_paper_rule,
        'params_stored': row.pruned.num_params,
        'params_nonzero': row.pruned.num_nonzero_params,
        'num_flops_sparse': row.fused.num_flops,
        'num_flops': row.pruned.num_flops,
        'size_mib_sparse': row.fused.size_bytes / MIB,
        'size_mib': row.pruned.size_bytes / MIB,
        'size_mib_hybrid': _as_run(row).size_bytes / MIB,
        'params_stored_hybrid': _as_run(row).num_params,
        'num_sparse_layers': row.num_sparse_layers,
        'conversion_time_ms': row.conversion_time_ms,
    }
    for pruned in row.pruned.latencies:
        where = pruned.device if pruned.backend == 'eager' else f'{pruned.device}_{pruned.backend}'
        columns[f'{where}_hardware'] = pruned.hardware
        columns[f'{where}_num_threads'] = pruned.num_threads
    profiles = {'unfused': row.unfused, 'fused': row.fused, 'pruned': row.pruned, 'hybrid': _as_run(row)}
    for form, profile in profiles.items():
        for latency in profile.latencies:
            where = latency.device if latency.backend == 'eager' else f'{latency.device}_{latency.backend}'
            columns[_latency_column(where, latency.batch_size, form)] = latency.p50_ms
            columns[_latency_column(where, latency.batch_size, form, 'p95')] = latency.p95_ms
            for base, speedup in latency.speedup_over.items() if form in FORMS else ():
                column = speedup_column(where, latency.batch_size, form, base)
                columns |= {column: speedup.median, f'{column}_low': speedup.low, f'{column}_high': speedup.high,
                            f'{column}_is_gain': speedup.is_gain}
    for sparse, pruned in zip(row.unfused.peak_memory, row.pruned.peak_memory, strict=True):
        name = f'{pruned.device}_peak_memory_mib_batch_{pruned.batch_size}'
        columns |= {f'{name}_sparse': sparse.peak_bytes / MIB, name: pruned.peak_bytes / MIB}
    return columns


def _as_run(row: Row) -> Profile:
    return row.hybrid or row.pruned


def _latency_column(where: str, batch_size: int, form: str, percentile: str = 'p50') -> str:
    return f'{where}_latency_{percentile}_ms_batch_{batch_size}_{form}'


def speedup_column(where: str, batch_size: int, form: str, base: str) -> str:
    """The name of the column of a form's speed-up over `base`; `_low` and `_high` are its interval."""
    of = '' if form == 'pruned' else f'_{form}'
    return f'{where}_speedup_batch_{batch_size}{of}_over_{base}'


def _measured(frame: pd.DataFrame) -> list[str]:
    """What was timed, as the columns name it: 'cpu', 'cuda', 'cpu_compile', ..."""
    return [name.removesuffix('_hardware') for name in frame if name.endswith('_hardware')]


def _latency_table(frame: pd.DataFrame, where: str, form: str) -> str:
    columns = [('', 'level', [str(level) for level in frame['level']])]
    for batch_size in _BATCH_SIZES:
        if _latency_column(where, batch_size, form) in frame:
            p50, p95 = (map(_three_digits, frame[_latency_column(where, batch_size, form, percentile)])
                        for percentile in ('p50', 'p95'))
            unfused, fused = (_speedups(frame, speedup_column(where, batch_size, form, base))
                              for base in ('unfused', 'fused'))
            columns += [(f'batch {batch_size}', '  p50', p50), ('', '  p95', p95),
                        ('speed-up over', 'unfused', unfused), ('', '  fused', fused)]
    num_threads, hardware = ('/'.join(map(str, frame[f'{where}_{name}'].unique()))
                             for name in ('num_threads', 'hardware'))
    threads = 'thread' if num_threads == '1' else 'threads'
    machine = f'{where} ({hardware}, {num_threads} {threads})'
    return f'Latency of the pruned models, {FORMS[form]}, on {machine}, ms per batch\n{_table(columns)}'


def _speedups(frame: pd.DataFrame, name: str) -> list[str]:
    """The number for a gain and for a loss, 'no gain' for what lies between."""
    speedups = map(Speedup, frame[name], frame[f'{name}_low'], frame[f'{name}_high'])
    return [f'{speedup.median:.2f}' if speedup.is_gain or speedup.is_loss else 'no gain' for speedup in speedups]


def _legend(frame: pd.DataFrame) -> str:
    num_optimal, num_variants = frame['pareto_optimal'].sum(), len(frame)
    return '\n'.join([
        f'Search efficiency: {num_optimal} of {num_variants} variants are optimal '
        f'({100 * frame["search_efficiency"].iloc[0]:.1f} %).',
        '*        optimal: no optimal variant of at least its accuracy is at most '
        f'{100 * LATENCY_TOLERANCE:g} % slower',
        f'         (batch 1, CPU) and at most {100 * SIZE_TOLERANCE:g} % larger; hybrid where there are sparse layers',
        f'= K      near-duplicate of level K: within these, and {100 * ACCURACY_TOLERANCE:g} points of accuracy',
        "paper    what the published rule would store: it only removes all-zero filters, with their constants",
        'changed  test images whose predicted class is not that of the sparse model',
        'hybrid   layers that are faster so, measured with 16 images, keep and read non-zero weights only',
        'fused    the sparse model with batch norms in the convolutions; unfused: as trained',
        f'no gain  the 95 % confidence interval of the speed-up does not lie above {MIN_GAIN}',
        'FLOPs    of one image with all layers dense, a multiply-add being 2'])


def _table(columns: Iterable[tuple[str, str, Iterable[str]]]) -> str:
    """Right-aligned columns (group, title, cells); a group's name stands at the left above its first column."""
    columns = [(group, [title, *cells]) for group, title, cells in columns]
    widths = [max(map(len, cells)) for _, cells in columns]
    groups, rows = '', []
    for (group, cells), width in zip(columns, widths, strict=True):
        start = sum(widths[:len(rows)]) + 2 * len(rows)
        groups = groups.ljust(start) + group if group else groups
        rows.append([cell.rjust(width) for cell in cells])
    lines = [groups, *('  '.join(cells).rstrip() for cells in zip(*rows, strict=True))]
    return '\n'.join([*lines[:2], '-' * max(map(len, lines)), *lines[2:]])


def _percent(values: Iterable[float]) -> list[str]:
    return ['-' if pd.isna(value) else f'{100 * value:.2f}' for value in values]


def _three_digits(value: float) -> str:
    """0.0412, 6.12, 20.9, 252, 5894."""
    return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}' if value else '0'


def _short(count: int) -> str:
    """134, 8.72k, 14.7M."""
    power = (len(str(count)) - 1) // 3
    return str(count) if power == 0 else f'{_three_digits(count / 1000**power)}{"kMGTP"[power - 1]}'


def _draw_accuracy(axes: Axes, frame: pd.DataFrame) -> None:
    ratio = frame['compression_ratio']
    axes.plot(ratio, 100 * frame['accuracy_sparse'].astype(float), **_SPARSE, color='0.5', label='sparse (masked)')
    axes.plot(ratio, 100 * frame['accuracy_pruned'].astype(float), **_PRUNED, color='tab:blue',
              label='pruned (smaller, dense)')
    axes.set_ylabel('top-1 accuracy (%)')
    axes.grid(which='both', alpha=0.3)
    axes.legend(fontsize='small')


def _draw_latency(axes: Axes, frame: pd.DataFrame) -> None:
    ratio = frame['compression_ratio']
    for batch_size, color in ((1, 'tab:orange'), (128, 'tab:green')):
        if _latency_column('cpu', batch_size, 'pruned') not in frame:
            continue
        axes.plot(ratio, frame[_latency_column('cpu', batch_size, 'fused')] / batch_size, **_SPARSE, color=color,
                  alpha=0.5, label=f'sparse, fused, batch {batch_size}')
        for form, style, label in (('pruned', _PRUNED, 'pruned, dense'), ('hybrid', _HYBRID, 'pruned, hybrid')):
            p50, p95 = (frame[_latency_column('cpu', batch_size, form, percentile)] / batch_size
                        for percentile in ('p50', 'p95'))
            axes.errorbar(ratio, p50, (0 * p50, p95 - p50), **style, color=color, capsize=2, elinewidth=1,
                          label=f'{label}, batch {batch_size}')
    axes.set_ylabel('CPU latency (ms per image)')
    _log_scale(axes, 'y')
    axes.set_xlabel('compression ratio (prunable weights / weights kept)')
    axes.set_xscale('log', base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}x')
    axes.grid(which='both', alpha=0.3)
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low)**0.25)  # room for the legend
    axes.legend(fontsize='small', ncols=2, loc='upper right')


def _draw_front(axes: Axes, frame: pd.DataFrame) -> None:
    frame = frame.sort_values('comparable_latency_ms')
    latency, accuracy = frame['comparable_latency_ms'], 100 * frame['accuracy_pruned'].astype(float)
    optimal, twin = frame['pareto_optimal'], frame['near_duplicate_of'].notna()
    # Some are optimal for their size alone: the line is the best accuracy to be had within a latency.
    [line] = axes.plot(np.repeat(latency[optimal], 2)[1:], np.repeat(accuracy[optimal].cummax(), 2)[:-1],
                       color='tab:blue', alpha=0.5)
    for chosen, color, fill, label in ((optimal, 'tab:blue', 'tab:blue', 'optimal'),
                                       (~optimal & ~twin, '0.5', 'none', 'beaten by an optimal one'),
                                       (twin, 'tab:orange', 'none', 'near-duplicate of an optimal one')):
        axes.scatter(latency[chosen], accuracy[chosen], edgecolors=color, facecolors=fill, zorder=3, label=label)
    if latency.max() > 3 * latency.min():
        _log_scale(axes, 'x')
    axes.set_xlabel('CPU latency (ms, batch 1)')
    axes.set_ylabel('top-1 accuracy (%)')
    axes.set_title(f'{optimal.sum()} of {len(frame)} variants are optimal', fontsize='medium')
    axes.margins(0.1)
    axes.grid(which='both', alpha=0.3)
    axes.legend(fontsize='small')
    _label(axes, latency, accuracy, [f'{ratio:.3g}x' for ratio in frame['compression_ratio']], line)


def _log_scale(axes: Axes, which: str) -> None:
    """A logarithmic axis with plain numbers."""
    axis = getattr(axes, f'{which}axis')
    getattr(axes, f'set_{which}scale')('log', base=10)
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.set_major_formatter(lambda value, _: f'{value:g}')
    axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, xs: pd.Series, ys: pd.Series, texts: Sequence[str], line: Line2D) -> None:
    """Writes each text at the place nearest to its point where it covers no point, no text and no part of the line."""
    axes.figure.draw_without_rendering()  # from here on pixels are final
    pixels = axes.figure.dpi / 72  # per point of type
    points = axes.transData.transform(np.column_stack([xs, ys]))
    corners = axes.transData.transform(line.get_xydata())
    taken = [axes.get_legend().get_window_extent(),
             *(Bbox([point - 4 * pixels, point + 4 * pixels]) for point in points),
             *(Bbox([np.minimum(*ends) - 1, np.maximum(*ends) + 1]) for ends in zip(corners, corners[1:]))]
    angles = np.deg2rad([45, 135, 315, 225, 0, 180, 90, 270, *np.arange(22.5, 360, 45)])
    for x, y, point, text in zip(xs, ys, points, texts, strict=True):
        note = axes.annotate(text, (x, y), (0, 0), textcoords='offset points', ha='center', va='center', fontsize=8,
                             arrowprops=dict(arrowstyle='-', color='0.4', linewidth=0.5, shrinkB=4), in_layout=False)
        size = np.array(note.get_window_extent().size)
        for radius, angle in itertools.product(range(8, 160, 4), angles):
            direction = np.array([np.cos(angle), np.sin(angle)])
            center = point + direction * radius * pixels + direction.round() * size / 2
            box = Bbox([center - size / 2 - 1, center + size / 2 + 1])
            if axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) and not box.count_overlaps(taken):
                break
        taken.append(box)
        note.xyann = (center - point) / pixels
