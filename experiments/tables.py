"""Means with their spread, cells that say what is missing, Markdown, CSV and pictures, written whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
import json
import math
import pathlib

from matplotlib.figure import Figure
import pandas as pd

from open_lth.foundations.files import write_atomically

MISSING = 'missing'
LEGEND = ('`a ± b (n)`: mean and standard deviation (n - 1) over n replicates; of one replicate there is no deviation. '
          f'`{MISSING}`: not run yet, or failed.')


def paper() -> dict:
    """Every number the paper prints, and those of its authors' notebook; see `meta` in the file."""
    return json.loads((pathlib.Path(__file__).parent / 'paper.json').read_text())


def spread(results: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """One row per group, in the order in which they come: of each column its mean, standard deviation and n.

    The columns are COLUMN_mean, COLUMN_std (NaN unless n > 1), COLUMN_n; what is NaN in the results does not count.
    """
    groups = results.groupby(list(by), sort=False, dropna=False)
    found = {}
    for column in columns:
        values = groups[column]
        found |= {f'{column}_mean': values.mean(), f'{column}_std': values.std(), f'{column}_n': values.count()}
    return pd.DataFrame(found).reset_index()


def cell(row: pd.Series | None, column: str, digits: int = 2, *, factor: float = 1, unit: str = '',
         sign: bool = False) -> str:
    """A value of `spread` as `mean ± std (n)`, times the factor; with a sign also where it is positive."""
    if row is None or row[f'{column}_n'] == 0:
        return MISSING
    mean, std, n = (row[f'{column}_{part}'] for part in ('mean', 'std', 'n'))
    deviation = f' ± {factor * std:,.{digits}f}' if n > 1 else ''
    return f'{value(factor * mean, digits, unit, sign)}{deviation} ({n:.0f})'


def num_replicates(counts: pd.Series) -> str:
    """'n = 3', or 'n = 1 to 3' where some are missing."""
    low, high = counts.min(), counts.max()
    return f'n = {low}' if low == high else f'n = {low} to {high}'


def find(frame: pd.DataFrame, **values: object) -> pd.Series | None:
    """The row with these values, if there is one."""
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame.iloc[0] if len(frame) else None


def value(number: float | None, digits: int = 2, unit: str = '', sign: bool = False) -> str:
    """A single number, as the paper prints them; '' for None."""
    if number is None or math.isnan(number):
        return ''
    return f'{number:{"+" if sign else ""},.{digits}f}{unit}'


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are right-aligned."""
    lines = [columns, ['---', *(['---:'] * (len(columns) - 1))], *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def write_table(path: pathlib.Path, frame: pd.DataFrame) -> None:
    with write_atomically(path) as file:
        frame.to_csv(file, index=False, lineterminator='\n', float_format='%.8g')


def write_text(path: pathlib.Path, text: str) -> None:
    with write_atomically(path) as file:
        file.write(text)


def write_figure(path: pathlib.Path, figure: Figure) -> None:
    with write_atomically(path, 'wb') as file:
        figure.savefig(file, format='png', dpi=130, metadata={'Software': None})
