"""A Markdown table over all replicates of a lottery ticket experiment: mean and standard deviation per level.

    python -m experiments.replicate_table RUN_DIRECTORY

RUN_DIRECTORY is a lottery_HASH folder; each replicate_R/portfolio.csv in it is read.
"""

import argparse
from pathlib import Path
import sys

import pandas as pd


def read_replicates(run_directory):
    """All portfolio.csv tables of a run as one DataFrame, with a column 'replicate'. ValueError when there is none."""
    tables = sorted(Path(run_directory).glob('replicate_*/portfolio.csv'))
    if not tables:
        raise ValueError(f'{run_directory} holds no replicate_*/portfolio.csv: run `lottery` first')
    return pd.concat([pd.read_csv(path).assign(replicate=int(path.parent.name.removeprefix('replicate_')))
                      for path in tables], ignore_index=True)


def to_markdown(replicates):
    """One row per level. Standard deviations are over the replicates (n - 1)."""
    columns = ['level', 'compression ratio', 'accuracy sparse (%)', 'accuracy pruned (%)', 'parameters stored',
               'non-zero', 'MB', 'speed-up batch 1', 'speed-up batch 128', 'n']
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---:|' * len(columns)]
    for level, rows in replicates.groupby('level'):
        cells = [f'{level}', f'{rows.compression_ratio.mean():.1f}x',
                 _spread(100 * rows.accuracy_sparse, 2), _spread(100 * rows.accuracy_pruned, 2),
                 _spread(rows.params_stored, 0), _spread(rows.params_nonzero, 0),
                 f'{rows.size_mib.mean() * 2**20 / 1e6:.3f}',
                 _spread(rows.cpu_speedup_batch_1_over_fused, 2, 'x'),
                 _spread(rows.cpu_speedup_batch_128_over_fused, 2, 'x'),
                 f'{len(rows)}']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _spread(values, digits, unit=''):
    if len(values) == 1 or values.std() == 0:
        return f'{values.iloc[0]:,.{digits}f}{unit}'
    return f'{values.mean():,.{digits}f}{unit} ± {values.std():,.{digits}f}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('run_directory')
    try:
        print(to_markdown(read_replicates(parser.parse_args().run_directory)))
    except ValueError as e:
        sys.exit(f'error: {e}')


if __name__ == '__main__':
    main()
