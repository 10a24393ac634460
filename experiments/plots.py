"""What the figures share: a colour and a marker for each method, and the axis of compression ratios."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from experiments.methods import AT_INIT, DENSE, IMP

_PALETTE = ('tab:gray', 'tab:brown', 'tab:orange', 'tab:olive', 'tab:blue', 'tab:green', 'tab:purple', 'tab:pink',
            'tab:cyan')
COLORS = {DENSE: 'black', IMP: 'tab:red'} | dict(zip(AT_INIT, _PALETTE))
MARKERS = {DENSE: '', IMP: 'o'} | dict(zip(AT_INIT, 'sv^<>DPX*'))


def ratio_axis(axes: Axes, ratios: Sequence[int]) -> None:
    """Logarithmic, with the ratios asked for as its ticks."""
    axes.set_xscale('log', base=2)
    axes.set_xticks(ratios, [f'{ratio}x' for ratio in ratios])
    axes.minorticks_off()
    axes.set_xlabel('compression ratio (prunable weights / weights kept)')
    axes.grid(alpha=0.3)
