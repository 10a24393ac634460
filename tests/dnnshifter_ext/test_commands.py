"""The commands a user types, with the extension installed into the engine's registries."""

import functools
import pathlib
import subprocess
import sys

import pytest

from dnnshifter_ext import level as levels
from dnnshifter_ext.install import install
from dnnshifter_ext.profiler import profile_together
from tests import helpers

FLAGS = ('--model_name=cifar_resnet_8_2', '--model_init=kaiming_normal', '--batchnorm_init=uniform',
         '--dataset_name=digits', '--batch_size=30', '--subsample_fraction=0.1', '--optimizer_name=sgd',
         '--lr=0.1', '--momentum=0.9', '--training_steps=1ep', '--pruning_strategy=sparse_global',
         '--pruning_fraction=0.5')


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Installs the extension for one test."""
    quick = functools.partial(profile_together, batch_sizes=(1, 4), budget_s=0)
    monkeypatch.setattr(levels, 'profile_together', quick)
    install()


def lottery(root, *flags):
    return helpers.succeed('lottery', *FLAGS, *flags, root=root)


def ours(root):
    """Names of the files that the extension wrote, below the replicate's folder."""
    return sorted(str(pathlib.Path(*pathlib.Path(name).parts[2:])) for name in helpers.list_files(root)
                  if 'dnnshifter' in name or 'portfolio' in name)


def theirs(root):
    """Name -> digest of all other files."""
    return {name: digest for name, digest in helpers.content_digests(root).items()
            if 'dnnshifter' not in name and 'portfolio' not in name}


FILES_OF_LEVELS_0_AND_1 = sorted(
    [f'level_{level}/dnnshifter/{name}'
     for level in (0, 1) for name in ('model.pth', 'plan.json', 'profile.json')]
    + ['portfolio.csv', 'portfolio.png'])


def test_lottery_makes_the_portfolio(root):
    outcome = lottery(root, '--levels=1')
    assert ours(root) == FILES_OF_LEVELS_0_AND_1
    assert 'level  ratio  sparse  pruned' in outcome.out
    assert outcome.out.rstrip().splitlines()[-1].endswith('portfolio.png')


def test_the_experiment_itself_is_the_same_with_and_without(root, tmp_path):
    other = tmp_path / 'other'
    with_portfolio, without = lottery(root, '--levels=1'), lottery(other, '--levels=1', '--no_dnnshifter')
    assert ours(other) == [] and 'ratio' not in without.out
    assert theirs(root) == theirs(other)
    assert with_portfolio.out.replace(str(root), str(other)).startswith(without.out.split('test\t')[0])
    # Levels added later convert what is there already.
    lottery(other, '--levels=1', '--quiet')
    assert ours(other) == FILES_OF_LEVELS_0_AND_1
    assert theirs(root) == theirs(other)


def test_extending_a_run_converts_the_new_level_only(root):
    lottery(root, '--levels=0')
    [model] = root.rglob('model.pth')
    before = model.stat().st_mtime_ns
    outcome = lottery(root, '--levels=1', '--quiet')
    assert outcome.out == ''
    assert ours(root) == FILES_OF_LEVELS_0_AND_1
    assert model.stat().st_mtime_ns == before


def test_branch_converts_existing_levels(root):
    lottery(root, '--levels=1', '--no_dnnshifter')
    before = theirs(root)
    outcome = helpers.succeed('lottery_branch', 'dnnshifter', *FLAGS, '--levels=0-1', root=root)
    assert ours(root) == FILES_OF_LEVELS_0_AND_1
    assert theirs(root) == before
    assert 'Branch dnnshifter (Replicate 1, Level 1)' in outcome.out and 'Search efficiency' in outcome.out
    # The command `lottery` finds them done.
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob('dnnshifter/*')}
    lottery(root, '--levels=1')
    assert stamps == {path: path.stat().st_mtime_ns for path in root.rglob('dnnshifter/*')}


def test_branch_off_a_missing_level_is_one_line_and_writes_nothing(root):
    lottery(root, '--levels=0', '--no_dnnshifter')
    before = helpers.list_files(root)
    outcome = helpers.run_engine('lottery_branch', 'dnnshifter', *FLAGS, '--levels=0-3', root=root)
    helpers.assert_one_line_error(outcome, 'level 1 is not trained', 'level_1/main')
    assert helpers.list_files(root) == before


def test_a_level_that_cannot_be_converted_says_what_to_do(root):
    outcome = helpers.run_engine('lottery', *FLAGS, '--lr=1e30', '--levels=0', root=root)
    helpers.assert_one_line_error(outcome, 'level 0', 'cannot be converted', 'NaN', '--no_dnnshifter')


def test_help_names_the_flag_and_the_branch(root):
    assert '--no_dnnshifter' in helpers.run_main('lottery', '--help').out
    assert 'dnnshifter' in helpers.run_main('lottery_branch').out


def test_location_of_the_branch(root):
    outcome = helpers.run_engine('lottery_branch', 'dnnshifter', *FLAGS, '--levels=0',
                                 '--display_output_location', root=root)
    assert outcome.out.strip().endswith('/dnnshifter') and not root.exists()


def test_installing_costs_no_heavy_import():
    code = '''
import sys
import dnnshifter_ext, dnnshifter_ext.install
dnnshifter_ext.install.install()
heavy = {'torch', 'pandas', 'matplotlib', 'numpy', 'dnnshifter_ext.lottery'} & set(sys.modules)
assert not heavy, heavy
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=helpers.REPOSITORY)
