"""Figure 5: test accuracy against compression ratio, all unstructured methods, both networks.

    python -m experiments.fig5_accuracy --scale=small
"""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np
import pandas as pd

from experiments import command, tables
from experiments import runs as declared
from experiments.methods import AT_INIT, DENSE, IMP, IN_PAPER, LABELS
from experiments.plots import COLORS, MARKERS, ratio_axis
from experiments.runs import Run
from experiments.scales import Network, Scale

TITLE = 'Figure 5: accuracy against compression ratio'
# Where the paper's finding is checked that IMP is at least as good as every method at initialisation.
CHECKED_RATIOS = (16, 64)
_MEASURED = ('accuracy', 'change', 'top5_accuracy', 'top5_change', 'compression_ratio', 'num_empty_layers',
             'scoring_time_s', 'scoring_memory_mib')

read = declared.read


def runs(scale: Scale) -> tuple[Run, ...]:
    return declared.comparison(scale)


def analyse(results: pd.DataFrame) -> pd.DataFrame:
    """One row per network, method and ratio; of each quantity mean, standard deviation and n (see `tables.spread`).

    change, top5_change: accuracy minus that of the dense model of the same replicate. compression_ratio: prunable
    weights over those kept, which may differ a little from the ratio asked for.
    """
    results = results.copy()
    dense = results[results.method == DENSE].set_index(['network', 'replicate'])
    own = pd.MultiIndex.from_frame(results[['network', 'replicate']])
    for column, change in (('accuracy', 'change'), ('top5_accuracy', 'top5_change')):
        results[change] = results[column] - dense[column].reindex(own).to_numpy()
    results['compression_ratio'] = results.num_prunable / results.num_kept
    results['scoring_memory_mib'] = results.scoring_memory_bytes / 2**20
    return tables.spread(results, ['network', 'method', 'ratio'], _MEASURED)


def report(scale: Scale, table: pd.DataFrame) -> str:
    return '\n\n'.join([*(part for network in scale.networks for part in _network_report(network, scale, table)),
                        '## IMP against the methods at initialisation', *_check(scale, table),
                        '## What scoring costs', _scoring_table(scale, table)])


def figure(scale: Scale, table: pd.DataFrame) -> Figure:
    """One panel per network; a second row with top-5 accuracy where there are more than 10 classes."""
    metrics = [('accuracy', 'top-1')] + [('top5_accuracy', 'top-5')] * bool(table.top5_accuracy_n.any())
    canvas = Figure(figsize=(6.5 * len(scale.networks), 4.6 * len(metrics)), layout='constrained')
    panels = canvas.subplots(len(metrics), len(scale.networks), squeeze=False)
    for row, (metric, name) in zip(panels, metrics, strict=True):
        for axes, network in zip(row, scale.networks, strict=True):
            _draw(axes, table[table.network == network.name], metric, scale.ratios)
            axes.set_title(network.title)
            axes.set_ylabel(f'{name} test accuracy (%)')
    handles, labels = panels[0, 0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc='outside right center')
    canvas.suptitle(f'mean, band: ± 1 standard deviation; {tables.num_replicates(table.accuracy_n)}')
    return canvas


def paper_changes(network: Network) -> dict[tuple[str, int], float]:
    """(method, ratio) -> change of top-1 accuracy against the dense network, in points, as far as it is published.

    The article prints VGG-16's; ResNet-50's are one run in the authors' notebook.
    """
    numbers = tables.paper()
    if network.paper == 'vgg16_cifar10':
        rows = numbers['tables']['table4']['rows']
        changes = {(IMP, ratio): rows[f'dnnshifter_{ratio}x']['acc_change_pct'] for ratio in (2, 4, 16, 64)}
        drops = numbers['figures']['fig5']['vgg16_cifar10_top1_drop_pct_at_256x']
        return changes | {(method, 256): -drops[name] for method, name in IN_PAPER.items()
                          if drops.get(name) is not None}
    rows = numbers['notebook'][network.paper]['dnnshifter_first_run']
    return {(IMP, int(ratio)): row['top1_pct'] - rows['1']['top1_pct']
            for ratio, row in rows.items() if ratio != '1' and 'top1_pct' in row}


def _network_report(network: Network, scale: Scale, table: pd.DataFrame) -> list[str]:
    table = table[table.network == network.name]
    dense = tables.find(table, method=DENSE)
    published = tables.paper()['tables']['table2']['rows'][network.paper]
    parts = [f'## {network.title}',
             f'Dense: {tables.cell(dense, "accuracy", factor=100, unit=" %")} top-1; the paper\'s '
             f'{network.paper_title}: {published["top1_pct"]} ± {published["top1_std"]} % (3 or more).',
             'Top-1 accuracy (%):', _ratio_table(scale, table, 'accuracy', factor=100),
             'Change against dense, in points of top-1 accuracy; below ours the published change of '
             f'{network.paper_title}:',
             _ratio_table(scale, table, 'change', paper_changes(network), factor=100, sign=True)]
    if table.top5_accuracy_n.any():
        parts += [f'Top-5 accuracy (%; dense {tables.cell(dense, "top5_accuracy", factor=100)}):',
                  _ratio_table(scale, table, 'top5_accuracy', factor=100)]
    reached = [f'{row.compression_ratio_mean:.1f}x' for _, row in table[table.method == IMP].iterrows()
               if row.compression_ratio_n]
    if reached:
        parts.append('IMP prunes one weight more than asked at each level (as OpenLTH does) and so reaches '
                     f'{", ".join(reached)}; the others have exact counts.')
    if (table.num_empty_layers_mean > 0).any():
        parts += ['Layers in which no weight is left:', _ratio_table(scale, table, 'num_empty_layers', digits=1)]
    return parts


def _ratio_table(scale: Scale, table: pd.DataFrame, column: str, published: dict | None = None, *, digits: int = 2,
                 factor: float = 1, sign: bool = False) -> str:
    """Methods down, ratios across; published values in a line of their own below."""
    rows = []
    for method in (IMP, *AT_INIT):
        if column == 'num_empty_layers' and method == IMP:
            continue
        rows.append([LABELS[method], *(
            tables.cell(tables.find(table, method=method, ratio=ratio), column, digits, factor=factor, sign=sign)
            for ratio in scale.ratios)])
        theirs = [tables.value((published or {}).get((method, ratio)), sign=True) for ratio in scale.ratios]
        if any(theirs):
            rows.append([f'*paper: {LABELS[method]}*', *theirs])
    return tables.markdown(['', *(f'{ratio}x' for ratio in scale.ratios)], rows)


def _check(scale: Scale, table: pd.DataFrame) -> list[str]:
    """The paper's finding, in words, for each ratio at which it is checked."""
    lines = ['Checked: is IMP\'s mean accuracy within one standard deviation of each method\'s, or above it? The '
             'deviation is that of both together, sqrt((s_IMP² + s_method²) / 2), and 0 with one replicate.']
    for network in scale.networks:
        for ratio in CHECKED_RATIOS:
            if ratio in scale.ratios:
                lines.append(f'* {network.title}, {ratio}x: {_verdict(table[table.network == network.name], ratio)}')
    return ['\n'.join([lines[0], '', *lines[1:]])]


def _verdict(table: pd.DataFrame, ratio: int) -> str:
    imp = tables.find(table, method=IMP, ratio=ratio)
    others = {method: tables.find(table, method=method, ratio=ratio) for method in AT_INIT}
    unknown = [LABELS[method] for method, row in {IMP: imp, **others}.items() if row is None or not row.accuracy_n]
    if unknown:
        return f'cannot be said, for these are {tables.MISSING}: {", ".join(unknown)}'
    better = {LABELS[method]: 100 * (row.accuracy_mean - imp.accuracy_mean) for method, row in others.items()
              if row.accuracy_mean - imp.accuracy_mean > _common_std(imp, row)}
    if not better:
        return '**holds** for all methods'
    return '**does not hold**: ' + ', '.join(f'{label} is {gain:.2f} points better' for label, gain in better.items())


def _common_std(first: pd.Series, second: pd.Series) -> float:
    variances = [row.accuracy_std**2 for row in (first, second) if row.accuracy_n > 1]
    return math.sqrt(sum(variances) / 2)


def _scoring_table(scale: Scale, table: pd.DataFrame) -> str:
    """Over all ratios and replicates: the cost hardly depends on the ratio."""
    rows = []
    for method in AT_INIT:
        cells = [LABELS[method]]
        for network in scale.networks:
            chosen = table[(table.network == network.name) & (table.method == method)]
            cells += [_over_ratios(chosen, 'scoring_time_s', 2), _over_ratios(chosen, 'scoring_memory_mib', 0)]
        rows.append(cells)
    head = ['method', *(f'{network.name}: {what}' for network in scale.networks for what in ('seconds', 'peak MiB'))]
    return ('Seconds, and memory beyond what was in use before (n: masks, over ratios and replicates). IMP scores by '
            f'training: {scale.num_levels} trainings before the last.\n\n{tables.markdown(head, rows)}')


def _over_ratios(rows: pd.DataFrame, column: str, digits: int) -> str:
    """Mean and deviation over all masks, from those of each ratio."""
    counts, means = rows[f'{column}_n'].to_numpy(), rows[f'{column}_mean'].fillna(0).to_numpy()
    deviations = rows[f'{column}_std'].fillna(0).to_numpy()
    n = counts.sum()
    mean = (counts * means).sum() / max(n, 1)
    squares = ((counts - 1).clip(0) * deviations**2 + counts * (means - mean)**2).sum()
    pooled = pd.Series({f'{column}_mean': mean, f'{column}_std': math.sqrt(squares / max(n - 1, 1)), f'{column}_n': n})
    return tables.cell(pooled, column, digits)


def _draw(axes: Axes, table: pd.DataFrame, metric: str, ratios: tuple[int, ...]) -> None:
    for method in (DENSE, *AT_INIT, IMP):  # IMP on top
        rows = table[(table.method == method) & (table[f'{metric}_n'] > 0)]
        if rows.empty:
            continue
        mean, std = 100 * rows[f'{metric}_mean'], 100 * rows[f'{metric}_std'].fillna(0)
        ratio = rows.compression_ratio_mean
        style = dict(color=COLORS[method], label=LABELS[method])
        if method == DENSE:
            ratio, mean, std = (np.repeat(values, 2) for values in ([ratios[0], ratios[-1]], mean, std))
            ratio = ratio[::2]
            axes.plot(ratio, mean, linestyle='--', **style)
        else:
            width = 2.5 if method == IMP else 1.3
            axes.plot(ratio, mean, marker=MARKERS[method], linewidth=width, markersize=5, **style)
        axes.fill_between(ratio, mean - std, mean + std, color=COLORS[method], alpha=0.15, linewidth=0)
    ratio_axis(axes, ratios)


if __name__ == '__main__':
    command.main('fig5_accuracy')
