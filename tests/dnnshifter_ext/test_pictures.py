"""Runs that are read back, and their pictures."""

import json
import os
import re

import numpy as np
import pytest

from dnnshifter_ext import pictures, plan
from dnnshifter_ext.plan import LayerPlan, RemovalPlan, Removed
from dnnshifter_ext.portfolio import to_frame
from open_lth.foundations.errors import CorruptFileError, UserError
from tests.dnnshifter_ext.test_portfolio import rows

# Of 8 channels 5 go, each for another reason; the output layer stays as it is.
PLAN = RemovalPlan((
    LayerPlan('conv', 8, 3, (0, 1, 2), (0, 1, 2), (
        Removed(plan.UNREAD, (3,)), Removed(plan.CONSTANT_ZERO, (4,)), Removed(plan.FOLDED.format(reader='fc'), (5,)),
        Removed(plan.MERGED.format(carrier=2, reader='next'), (6,)), Removed(plan.SHIFTED.format(add='add_1'), (7,)))),
    LayerPlan('fc', 4, 8, (0, 1, 2, 3), (0, 1, 2), barrier='it feeds the output of the model')))


def make_run(folder, plans=()):
    folder.mkdir(parents=True)
    to_frame(rows()).to_csv(folder / 'portfolio.csv', index=False)
    for level, removal in enumerate(plans):
        path = pictures.level_directory(folder, level) / 'plan.json'
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(removal.to_dict()))
    return folder


def test_the_newest_run_below_a_folder_or_the_folder_itself(tmp_path):
    first, second = (make_run(tmp_path / name / 'replicate_1') for name in ('lottery_a', 'lottery_b'))
    os.utime(second / 'portfolio.csv', (1, 1))
    assert pictures.find_run(tmp_path) == first
    assert pictures.find_run(str(second)) == second
    with pytest.raises(UserError, match='no portfolio.csv in .*make one with'):
        pictures.find_run(tmp_path / 'nowhere')


def test_what_is_read_is_what_was_written(tmp_path):
    run = make_run(tmp_path / 'run', [PLAN, RemovalPlan(())])
    frame = pictures.read_portfolio(run)
    assert frame['level'].tolist() == [0, 1, 2, 3] and frame['near_duplicate_of'].tolist()[3] == 0
    assert frame['level'][frame['pareto_optimal']].tolist() == [0, 2]
    assert pictures.read_plans(run, [1, 0]) == {1: RemovalPlan(()), 0: PLAN}


@pytest.mark.parametrize('content', ['', '{"layers": [', '[]', '{"layers": [{}], "nodes": []}'])
def test_damage_is_named(tmp_path, content):
    run = make_run(tmp_path / 'run', [PLAN])
    path = pictures.level_directory(run, 0) / 'plan.json'
    path.write_text(content)
    with pytest.raises(CorruptFileError, match=re.escape(str(path))):
        pictures.read_plans(run, [0])
    (run / 'portfolio.csv').write_text(content)
    with pytest.raises(CorruptFileError, match='portfolio.csv is damaged'):
        pictures.read_portfolio(run)


def test_channels_are_counted_by_reason():
    table = pictures.channels(PLAN)
    assert table.loc['conv'].tolist() == [3, 0, 1, 1, 1, 1, 1, 0]
    assert table.loc['fc'].tolist() == [0, 4, 0, 0, 0, 0, 0, 0]
    by_the_paper = RemovalPlan((LayerPlan('conv', 2, 3, (0,), (0, 1, 2), (Removed(plan.ZERO_FILTER, (1,)),)),))
    assert pictures.channels(by_the_paper).loc['conv'].tolist() == [1, 0, 0, 0, 0, 0, 0, 1]


def test_a_bar_is_as_long_as_its_share():
    figure = pictures.figure_of_layers({level: PLAN for level in (2, 5, 7, 9)})
    used = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in used] == [f'level {level}: 5 of 12 channels go' for level in (2, 5, 7, 9)]
    bars = [(bar.get_y(), bar.get_x(), bar.get_width()) for bar in used[0].patches if bar.get_width()]
    np.testing.assert_allclose(sorted(bars), [
        (-0.4, 0, 37.5), *((-0.4, start, 12.5) for start in (37.5, 50, 62.5, 75, 87.5)), (0.6, 0, 100)])
    assert [text.get_text() for text in used[0].texts] == ['8 → 3', '4']
    assert [label.get_text() for label in used[0].get_yticklabels()] == ['conv', 'fc']
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(legend) == 7 and 'goes: all-zero filter, its constant dropped' not in legend


def test_costs_are_those_of_the_portfolio():
    sizes, speedups = pictures.figure_of_costs(to_frame(rows())).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in sizes.lines}
    assert lines['pruned: stored'] == [2**20, 2**19, 2**18, 2**20]
    assert lines['pruned: not zero'] == [2**19, 2**18, 2**17, 2**19]
    assert lines["by the paper's rule: stored"] == [3 * 2**18] * 4 and lines['sparse model: stored'] == [2**20] * 4
    assert lines['hybrid: stored'] == [2**20, 2**19, 2**18, 2**20]  # none: what would be run is the pruned model
    batch_1, batch_128, *hybrids = speedups.containers
    assert [line.get_label().split(',')[0] for line in hybrids] == ['hybrid'] * 2
    np.testing.assert_allclose(batch_1.lines[0].get_ydata(orig=False), [1, 1.6, 2, 8 / 8.16])
    bars = batch_1.lines[2][0].get_segments()
    np.testing.assert_allclose(bars[2][:, 1], [0.99 * 2, 1.01 * 2])
    assert batch_128.get_label().startswith('all layers dense, batch 128')
