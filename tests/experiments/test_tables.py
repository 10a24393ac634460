"""Means, spreads, cells, files."""

import pandas as pd
import pytest

from experiments import tables

RESULTS = pd.DataFrame({'ratio': [4, 4, 4, 16, 16, 64], 'accuracy': [0.1, 0.2, 0.6, 0.5, None, None]})


def cells(digits=1, **options):
    table = tables.spread(RESULTS, ['ratio'], ['accuracy'])
    return [tables.cell(row, 'accuracy', digits, **options) for _, row in table.iterrows()]


def test_a_cell_has_mean_deviation_and_n():
    # Mean 0.3; deviations -0.2, -0.1, 0.3: the squares make 0.14, over n - 1 = 2, whose root is 0.2646.
    assert cells(3)[0] == '0.300 ± 0.265 (3)'
    assert cells(1, factor=100, unit=' %')[0] == '30.0 % ± 26.5 (3)'
    assert cells(1, factor=100, sign=True)[0] == '+30.0 ± 26.5 (3)'
    assert cells(1, factor=-100, sign=True)[1] == '-50.0 (1)'


def test_one_value_has_no_deviation_and_none_is_missing():
    assert cells()[1:] == ['0.5 (1)', 'missing']
    assert tables.cell(None, 'accuracy') == 'missing'


def test_a_row_that_is_not_there():
    table = tables.spread(RESULTS, ['ratio'], ['accuracy'])
    assert tables.find(table, ratio=256) is None
    assert tables.find(table, ratio=16).accuracy_n == 1


def test_markdown():
    assert tables.markdown(['a', 'b'], [['1', '2']]) == '| a | b |\n| --- | ---: |\n| 1 | 2 |'


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'table.csv'
    tables.write_table(path, RESULTS)
    before = path.read_bytes()

    class Broken(pd.DataFrame):
        def to_csv(self, file, **options):
            file.write('half a li')
            raise OSError('disk full')

    with pytest.raises(OSError):
        tables.write_table(path, Broken(RESULTS))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_paper_is_quoted_once():
    numbers = tables.paper()
    assert numbers['tables']['table2']['rows']['vgg16_cifar10']['top1_pct'] == 93.21
    assert numbers['figures']['fig5']['vgg16_cifar10_top1_drop_pct_at_256x']['magnitude'] is None
