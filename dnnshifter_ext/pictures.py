"""A run read back from its folder, and what the portfolio's own figure does not show of it: sizes and speed-ups
against the compression ratio, and what went from each layer and why.

A run is the folder of one replicate, lottery_HASH/replicate_R, with portfolio.csv and level_K/dnnshifter/plan.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import math
import pathlib

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from dnnshifter_ext import paths, portfolio
from dnnshifter_ext import plan as plans
from dnnshifter_ext.plan import RemovalPlan
from dnnshifter_ext.profiler import MIN_GAIN
from open_lth.foundations.errors import CorruptFileError, UserError

STAYS, BARRIER = 'stays', 'stays, as all of its layer have to'
# What the reasons of a plan begin with -> what they have in common, in the order in which bars are stacked.
_KINDS = {reason.partition('{')[0]: kind for reason, kind in (
    (plans.UNREAD, 'goes: nobody reads it'),
    (plans.CONSTANT_ZERO, 'goes: always zero'),
    (plans.FOLDED, "goes: constant, now in the readers' biases"),
    (plans.MERGED, 'goes: constant, now in a carrier channel'),
    (plans.SHIFTED, 'goes: constant, now added in an addition'),
    (plans.ZERO_FILTER, 'goes: all-zero filter, its constant dropped'))}
_BATCH_COLORS = {1: 'tab:orange', 128: 'tab:green'}
_FORM_STYLES = {'pruned': dict(marker='o', markersize=4), 'hybrid': dict(marker='^', linestyle=':', fillstyle='none')}
_COLORS = {STAYS: 'tab:blue', BARRIER: 'lightsteelblue'} | dict(zip(
    _KINDS.values(), ('tab:orange', '0.8', 'tab:green', 'tab:olive', 'tab:purple', 'tab:red'), strict=True))


def find_run(folder: str | pathlib.Path) -> pathlib.Path:
    """The folder itself if it is a run with a portfolio, else the one below it whose portfolio was made last.

    Raises UserError where there is none.
    """
    tables = pathlib.Path(folder).glob(f'**/{paths.portfolio_table(".")}')
    newest = max(tables, key=lambda path: path.stat().st_mtime_ns, default=None)
    if newest is None:
        raise UserError(f'no portfolio.csv in {folder} or below it: make one with `main.py lottery`, or with `main.py '
                        'lottery_branch dnnshifter` of a run that is there already')
    return newest.parent


def read_portfolio(run: pathlib.Path) -> pd.DataFrame:
    """The portfolio as `portfolio.to_frame` made it. Raises CorruptFileError when the file is damaged."""
    path = paths.portfolio_table(run)
    try:
        return pd.read_csv(path, dtype={'near_duplicate_of': 'Int64'}).astype({'level': int, 'pareto_optimal': bool})
    except (ValueError, KeyError) as error:
        raise CorruptFileError(f'{path} is damaged ({error}); delete it and make the portfolio again') from error


def read_plans(run: pathlib.Path, levels: Iterable[int]) -> dict[int, RemovalPlan]:
    """Level -> what the conversion removed. Raises CorruptFileError when a file is damaged."""
    return {level: _read_plan(pathlib.Path(paths.plan(level_directory(run, level)))) for level in levels}


def level_directory(run: pathlib.Path, level: int) -> pathlib.Path:
    """Where the pruned model of a level is, for `dnnshifter_ext.load(level_directory(run, 8) / 'model.pth')`."""
    return run / f'level_{level}' / paths.EXPERIMENT


def channels(plan: RemovalPlan) -> pd.DataFrame:
    """One row per layer, in the order of the graph: how many output channels stay, and how many go for which reason."""
    rows = {layer.layer: {BARRIER if layer.barrier else STAYS: len(layer.keep_outputs)} | {
        _kind(removed.reason): len(removed.channels) for removed in layer.removed} for layer in plan.layers}
    return pd.DataFrame.from_dict(rows, orient='index', columns=list(_COLORS)).fillna(0).astype(int)


def figure_of_costs(frame: pd.DataFrame) -> Figure:
    """Parameters, and the speed-up over the sparse model (fused), against the compression ratio."""
    canvas = Figure(figsize=(13, 4.5), layout='constrained')
    sizes, speedups = canvas.subplots(1, 2)
    _draw_sizes(sizes, frame)
    _draw_speedups(speedups, frame)
    for axes in (sizes, speedups):
        axes.set_xscale('log', base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f'{value:g}x')
        axes.set_xlabel('compression ratio (prunable weights / weights kept)')
        axes.grid(alpha=0.3)
        axes.legend(fontsize='small')
    return canvas


def figure_of_layers(removals: Mapping[int, RemovalPlan], num_columns: int = 3) -> Figure:
    """A panel per level, a bar per layer: which share of its channels stays, and which goes for what reason."""
    num_layers = max(len(plan.layers) for plan in removals.values())
    num_columns = min(num_columns, len(removals))
    num_rows = math.ceil(len(removals) / num_columns)
    canvas = Figure(figsize=(1.5 + 4 * num_columns, 0.7 + num_rows * (0.7 + 0.25 * num_layers)), layout='constrained')
    panels = canvas.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).ravel()
    used = {}
    for axes, (level, plan) in zip(panels, removals.items()):
        table = channels(plan)
        used |= _draw_layers(axes, table)
        axes.set_title(f'level {level}: {plan.num_removed} of {table.to_numpy().sum()} channels go', fontsize='medium')
    for place, axes in enumerate(panels):
        if place >= len(removals):
            axes.set_axis_off()
        elif place >= len(removals) - num_columns:  # nothing below it
            axes.tick_params(labelbottom=True)
    canvas.supxlabel('share of the output channels of the layer (%)', fontsize='medium')
    shown = [kind for kind in _COLORS if kind in used]
    canvas.legend([used[kind] for kind in shown], shown, loc='outside upper center', ncols=3, fontsize='small')
    return canvas


def _read_plan(path: pathlib.Path) -> RemovalPlan:
    try:
        return RemovalPlan.from_dict(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f'{path} is damaged ({type(error).__name__}: {error}); delete the folder '
                               f'{path.parent.name} to have it made again') from error


def _kind(reason: str) -> str:
    return next(kind for beginning, kind in _KINDS.items() if reason.startswith(beginning))


def _draw_sizes(axes: Axes, frame: pd.DataFrame) -> None:
    ratio = frame['compression_ratio']
    for column, label, color, style in (
            ('params_stored_sparse', 'sparse model: stored', '0.5', dict(linestyle='--', marker='s', fillstyle='none')),
            ('params_stored_paper_rule', "by the paper's rule: stored", 'tab:orange', dict(marker='x')),
            ('params_stored', 'pruned: stored', 'tab:blue', dict(marker='o')),
            ('params_stored_hybrid', 'hybrid: stored', 'tab:green', dict(marker='^', fillstyle='none')),
            ('params_nonzero', 'pruned: not zero', 'tab:blue', dict(marker='.', linestyle=':'))):
        axes.plot(ratio, frame[column], label=label, color=color, **style)
    axes.set_yscale('log')
    axes.set_ylabel('parameters')


def _draw_speedups(axes: Axes, frame: pd.DataFrame) -> None:
    axes.axhspan(1 / MIN_GAIN, MIN_GAIN, color='0.9', label='no gain')
    columns = {(form, batch_size): column for form in portfolio.FORMS for batch_size in (1, 128)
               if (column := portfolio.speedup_column('cpu', batch_size, form, 'fused')) in frame}
    for (form, batch_size), column in columns.items():
        speedup = frame[column]
        interval = np.stack([speedup - frame[f'{column}_low'], frame[f'{column}_high'] - speedup])
        axes.errorbar(frame['compression_ratio'], speedup, interval, color=_BATCH_COLORS[batch_size], capsize=2,
                      label=f'{portfolio.FORMS[form]}, batch {batch_size}, with its 95 % interval',
                      **_FORM_STYLES[form])
    # One disturbed measurement may have an interval of many times that.
    axes.set_ylim(0.7, 2.5 * frame[[*columns.values()]].to_numpy().max())  # and room for the legend
    axes.set_yscale('log', base=2)
    axes.set_ylabel('CPU speed-up over the sparse model, fused')
    axes.yaxis.set_major_formatter(lambda value, _: f'{value:.2g}x')


def _draw_layers(axes: Axes, table: pd.DataFrame) -> dict:
    """Kind -> one of its bars, of those that are there. The numbers at the right are channels before and after."""
    totals = table.sum(axis=1)
    percent = 100 * table.div(totals, axis=0)
    left, used = np.zeros(len(table)), {}
    for kind, color in _COLORS.items():
        if table[kind].any():
            used[kind] = axes.barh(range(len(table)), percent[kind], left=left, color=color)
        left += percent[kind].to_numpy()
    stays = table[[STAYS, BARRIER]].sum(axis=1)
    for place, (total, kept) in enumerate(zip(totals, stays, strict=True)):
        axes.text(102, place, f'{total} → {kept}' if kept < total else f'{total}', va='center', fontsize='small')
    axes.set_yticks(range(len(table)), table.index)
    axes.set_xlim(0, 125)
    axes.set_xticks(range(0, 101, 25))
    axes.set_ylim(len(table) - 0.5, -0.5)  # the first layer on top
    return used
