"""Figure 6: speed-up and spatial compression against compression ratio, converted and not.

    python -m experiments.fig6_runtime --scale=small

IMP's models are converted exactly and by the paper's rule, those of the other methods exactly; all are timed hybrid
(layers that are faster so on sparse kernels) and unconverted, too. All forms of a model and its dense baseline are
timed in turn in one process, one model at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from experiments import command, measurements, tables
from experiments import runs as declared
from experiments.executor import Task
from experiments.measurements import DENSE_FUSED, DENSE_UNFUSED, EXACT, HYBRID, PAPER, UNCONVERTED, Measurement
from experiments.methods import AT_INIT, DENSE, IMP, IN_PAPER, LABELS
from experiments.plots import COLORS, MARKERS, ratio_axis
from experiments.scales import Network, Scale

TITLE = 'Figure 6: speed-up and spatial compression against compression ratio'
_DEVICES = {'cpu': 'CPU', 'cuda': 'GPU'}
_KEYS = ['network', 'method', 'ratio', 'form']
_FORMS = {method: (UNCONVERTED, EXACT, HYBRID) for method in AT_INIT} | {
    IMP: (UNCONVERTED, EXACT, HYBRID, PAPER), DENSE: (DENSE_UNFUSED, DENSE_FUSED)}
_CONVERTED = (EXACT, HYBRID, PAPER)
# A network that is at most this much more accurate than guessing has collapsed: to make it fast is no achievement.
CHANCE_MARGIN = 0.01
BYTES_PER_PARAM = 4
_AT_CHANCE = '†'


def runs(scale: Scale) -> tuple[Task, ...]:
    return (*declared.comparison(scale), *measurements.declare(scale))


def read(tasks: Sequence[Task]) -> pd.DataFrame:
    """One row per form of each model that is to be measured; NaN where it has not been.

    The dense models have one row per replicate, the mean over all measurements in which they took part. Columns beside
    the keys: above_chance (test accuracy of the trained model minus that of guessing), num_params (stored),
    num_nonzero_params, spatial_compression, answers_changed (share of the test images on which a model answers
    otherwise than the unconverted sparse one), and for each device and batch size DEVICE_batch_N_ms (p50) and the
    speed-ups DEVICE_batch_N_over_unfused and _over_fused, with _low and _high, the 95 % confidence interval in one
    measurement.
    """
    rows = [row for task in tasks if isinstance(task, Measurement) for row in _rows(task)]
    return pd.DataFrame(rows).groupby([*_KEYS, 'replicate'], sort=False).mean().reset_index()


def analyse(results: pd.DataFrame) -> pd.DataFrame:
    """One row per network, method, ratio and form; of each quantity mean, standard deviation and n."""
    return tables.spread(results, _KEYS, [name for name in results if name not in (*_KEYS, 'replicate')])


def report(scale: Scale, table: pd.DataFrame) -> str:
    return '\n\n'.join(part for network in scale.networks for part in _network_report(network, scale, table))


def figure(scale: Scale, table: pd.DataFrame) -> Figure:
    """Speed-up on each device above, spatial compression below; one column per network."""
    speedups = [f'{where}_over_unfused' for where in _timed(table) if where.endswith('_batch_1')]
    canvas = Figure(figsize=(6.5 * len(scale.networks), 4.4 * (1 + len(speedups))), layout='constrained')
    panels = canvas.subplots(1 + len(speedups), len(scale.networks), squeeze=False)
    for column, network in zip(panels.T, scale.networks, strict=True):
        own = table[table.network == network.name]
        for axes, speedup in zip(column, speedups):
            _draw(axes, own, speedup, scale.ratios)
            axes.set_ylabel(f'{_DEVICES[speedup.partition("_")[0]]} speed-up over dense, unfused')
        _draw(column[-1], own, 'spatial_compression', scale.ratios)
        column[-1].set_ylabel('spatial compression (dense / stored)')
        column[0].set_title(network.title)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc='outside right center')
    canvas.suptitle(f'batch 1; mean; bars: ± 1 standard deviation, or the 95 % interval of a single measurement; '
                    f'{tables.num_replicates(table.num_params_n)}\nhollow: collapsed to an accuracy at most '
                    f'{100 * CHANCE_MARGIN:g} point above guessing, where speed is no achievement')
    return canvas


def _rows(measurement: Measurement) -> Iterator[dict]:
    model = measurement.model
    names = {'network': model.network.name, 'method': model.method, 'ratio': model.ratio, 'replicate': model.replicate}
    forms = measurement.forms() if measurement.is_done else {}
    for form in (*_FORMS[DENSE], *_FORMS[model.method]):
        is_dense = form in _FORMS[DENSE]
        dense = {'method': DENSE, 'ratio': 1} if is_dense else {}
        trained = measurement.baseline if is_dense else model
        above_chance = trained.on_test_set('accuracy') - model.network.chance if forms else np.nan
        yield names | dense | {'form': form, 'above_chance': above_chance} | _quantities(forms, form)


def _quantities(forms: dict[str, measurements.Form], name: str) -> dict[str, float]:
    if name not in forms:
        return dict.fromkeys(('num_params', 'num_nonzero_params', 'spatial_compression', 'answers_changed'), np.nan)
    profile = forms[name].profile
    found = {
        'num_params': profile.num_params,
        'num_nonzero_params': profile.num_nonzero_params,
        'spatial_compression': forms[DENSE_UNFUSED].profile.num_params / (
            profile.size_bytes / BYTES_PER_PARAM if name == HYBRID else profile.num_params),
        'answers_changed': forms[name].answers_changed,
    }
    for latency in profile.latencies:
        where = f'{latency.device}_batch_{latency.batch_size}'
        found[f'{where}_ms'] = latency.p50_ms
        for base, suffix in ((DENSE_UNFUSED, 'over_unfused'), (DENSE_FUSED, 'over_fused')):
            if base in latency.speedup_over:
                speedup = latency.speedup_over[base]
                found |= {f'{where}_{suffix}': speedup.median, f'{where}_{suffix}_low': speedup.low,
                          f'{where}_{suffix}_high': speedup.high}
    return found


def _timed(table: pd.DataFrame) -> list[str]:
    """DEVICE_batch_N of all that was timed."""
    return [name.removesuffix('_ms_mean') for name in table if name.endswith('_ms_mean')]


def _network_report(network: Network, scale: Scale, table: pd.DataFrame) -> list[str]:
    table = table[table.network == network.name]
    ours = [(DENSE, 1), *((IMP, ratio) for ratio in scale.ratios)]
    others = [(method, ratio) for method in AT_INIT for ratio in scale.ratios]
    return [f'## {network.title}', 'DNNShifter:', _table(network, table, ours),
            'The other methods:', _table(network, table, others), _remarks(network)]


def _table(network: Network, table: pd.DataFrame, models: Sequence[tuple[str, int]]) -> str:
    """One line per form of each model (method, ratio); columns without an entry are left out."""
    lines = [_line_of(network, table, method, ratio, form) for method, ratio in models for form in _FORMS[method]]
    columns = [column for column in lines[0] if any(line[column] for line in lines)]
    return tables.markdown(columns, [[line[column] for column in columns] for line in lines])


def _line_of(network: Network, table: pd.DataFrame, method: str, ratio: int, form: str) -> dict[str, str]:
    row = tables.find(table, method=method, ratio=ratio, form=form)
    mark = _AT_CHANCE if _is_at_chance(row) else ''
    speedups = {f'{where.replace("_", " ")}: over {base}': _speedup_cell(row, f'{where}_over_{base}') + mark
                for where in _timed(table) for base in ('unfused', 'fused')}
    theirs = _in_notebook(network, method, ratio, form)
    return {
        'model': f'{LABELS[method]} {ratio}x' if method != DENSE else LABELS[method],
        'form': form,
        'parameters stored': tables.cell(row, 'num_params', 0),
        'paper: stored': tables.value(theirs.get('params'), 0),
        'parameters not zero': tables.cell(row, 'num_nonzero_params', 0),
        'paper: not zero': tables.value(theirs.get('nonzero_params'), 0),
        'spatial compression': tables.cell(row, 'spatial_compression', unit='x') + mark,
        'paper: spatial': tables.value(theirs.get('spatial_compression'), unit='x'),
        **speedups,
        'paper: CPU over unfused': tables.value(theirs.get('cpu_speedup'), unit='x'),
        'paper: GPU over unfused': tables.value(theirs.get('gpu_speedup'), unit='x'),
        'answers changed (%)': '' if form not in _CONVERTED else tables.cell(row, 'answers_changed', factor=100),
    }


def _speedup_cell(row: pd.Series | None, column: str) -> str:
    """As `tables.cell`; a single measurement has the confidence interval of its rounds for a spread."""
    if row is None or f'{column}_n' not in row:
        return tables.MISSING
    if row.form == DENSE_UNFUSED or (row.form == DENSE_FUSED and column.endswith('over_fused')):
        return '1'
    if row[f'{column}_n'] != 1:
        return tables.cell(row, column, unit='x')
    low, high = row[f'{column}_low_mean'], row[f'{column}_high_mean']
    return f'{row[f"{column}_mean"]:.2f}x [{low:.2f}, {high:.2f}] (1)'


def _is_at_chance(row: pd.Series | None) -> bool:
    return row is not None and row.above_chance_n > 0 and row.above_chance_mean <= CHANCE_MARGIN


def _in_notebook(network: Network, method: str, ratio: int, form: str) -> dict:
    """What the authors' notebook says of the very form; {} where it says nothing."""
    numbers = tables.paper()['notebook'][network.paper]
    if (method, form) == (DENSE, DENSE_UNFUSED):
        return numbers[next(name for name in numbers if name.startswith('dense_baseline'))]['1']
    if form == (PAPER if method == IMP else UNCONVERTED):
        return numbers.get(IN_PAPER[method], {}).get(str(ratio), {})
    return {}


def _remarks(network: Network) -> str:
    printed = tables.paper()['figures']['fig6']
    return (
        f'Columns "paper": {network.paper_title} in the authors\' notebook (one run; speed-ups over an unfused dense '
        'model). Spatial compression: parameters stored, those of the dense model, unfused, over those of this one; '
        'of a hybrid its bytes, positions of weights included, over 4 take their place. '
        'Speed-ups are over the dense model, unfused or fused, timed in the same rounds. The article prints a spatial '
        'compression of '
        f'{printed["spatial_compression_at_256x"][network.paper]}x at 256x, and speed-ups of up to '
        f'{printed["cpu_speedup_max"]}x (CPU) and {printed["gpu_speedup_max_section432"]}x or '
        f'{printed["gpu_speedup_max_section1"]}x (GPU), without saying of which network. `a [b, c] (1)`: the '
        'median over the rounds of one measurement and its 95 % confidence interval. '
        f'`{_AT_CHANCE}`: the network has collapsed, its accuracy is at most {100 * CHANCE_MARGIN:g} point above '
        f'guessing ({100 * network.chance:g} %); that it can be made small and fast is no achievement.')


def _draw(axes: Axes, table: pd.DataFrame, column: str, ratios: Sequence[int]) -> None:
    fused = tables.find(table, method=DENSE, form=DENSE_FUSED)
    axes.axhline(1, color='black', linewidth=1, label='dense, unfused')
    if fused is not None and fused.get(f'{column}_n', 0) and column != 'spatial_compression':
        axes.axhline(fused[f'{column}_mean'], color='black', linewidth=1, linestyle='--', label='dense, fused')
    sparse = table[(table.form == UNCONVERTED) & (table.get(f'{column}_n', 0) > 0)].groupby('ratio')[f'{column}_mean']
    axes.fill_between(sparse.min().index, sparse.min(), sparse.max(), color='0.8', label='unconverted, all methods')
    for method in (*AT_INIT, IMP):
        _line(axes, table, method, EXACT, column, LABELS[method] + ', exact', MARKERS[method],
              linewidth=2.5 if method == IMP else 1.2)
    _line(axes, table, IMP, HYBRID, column, f'{LABELS[IMP]}, hybrid', '^', linewidth=2, linestyle=':')
    _line(axes, table, IMP, PAPER, column, f"{LABELS[IMP]}, paper's rule", 'x', linewidth=2, linestyle='--')
    ratio_axis(axes, ratios)
    if column == 'spatial_compression':
        axes.set_yscale('log', base=2)
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}x')
    else:
        axes.yaxis.set_major_formatter(lambda value, _: f'{value:.2g}x')


def _line(axes: Axes, table: pd.DataFrame, method: str, form: str, column: str, label: str, marker: str,
          **style: object) -> None:
    rows = table[(table.method == method) & (table.form == form) & (table.get(f'{column}_n', 0) > 0)]
    mean = rows[f'{column}_mean']
    error = rows[f'{column}_std'].fillna(0).to_numpy() * np.ones((2, 1))
    if f'{column}_low_mean' in rows:
        single = (rows[f'{column}_n'] == 1).to_numpy()
        interval = np.stack([mean - rows[f'{column}_low_mean'], rows[f'{column}_high_mean'] - mean]).clip(0)
        error = np.where(single, interval, error)
    axes.errorbar(rows.ratio, mean, error, color=COLORS[method], marker=marker, markersize=5, capsize=2, elinewidth=1,
                  label=label, **style)
    collapsed = np.array([_is_at_chance(row) for _, row in rows.iterrows()], dtype=bool)
    axes.plot(rows.ratio[collapsed], mean[collapsed], color=COLORS[method], marker=marker, markersize=5,
              markerfacecolor='white', linestyle='', zorder=5)


if __name__ == '__main__':
    command.main('fig6_runtime')
