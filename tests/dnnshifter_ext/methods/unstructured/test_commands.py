"""The methods as a user types them: `branch train oneshot`, `branch train iterative`, `lottery --pruning_strategy`."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from dnnshifter_ext.install import install
from tests.helpers import (
    REPOSITORY,
    TINY_FLAGS,
    artefacts,
    assert_one_line_error,
    content_digests,
    level,
    list_files,
    load,
    run_engine,
    same_state,
    succeed,
)

FLAGS = (*TINY_FLAGS, '--training_steps=2it', '--evaluate_only_at_end')

# How the tests run each method: less work than the published settings where those take seconds.
METHODS = {
    'random': ('--schedule=one_shot',),
    'random_layerwise': (),
    'magnitude': ('--schedule=one_shot',),
    'snip': (),
    'grasp': (),
    'synflow': ('--schedule=exponential',),
    'ntk_sap': ('--prune_iterations=2', '--strategy_options=num_draws=1'),
    'prospr': (),
}
ENGINES = ('magnitude', 'snip2', 'synflow')
RUN = 'train_*/replicate_1'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp('trunk')
    succeed('train', *FLAGS, '--quiet', root=root)
    return root


@pytest.fixture
def trunk(trained, tmp_path):
    install()
    return shutil.copytree(trained, tmp_path / 'trunk')


def branch(root, *flags, name='oneshot', run=succeed, quiet=True, **kwargs):
    return run('branch', 'train', name, *FLAGS, *flags, *(['--quiet'] if quiet else []), root=root, **kwargs)


def folder(root, *flags, **kwargs):
    """Runs the branch; the folder that it made."""
    before = set(root.glob(f'{RUN}/*'))
    branch(root, *flags, **kwargs)
    [made] = set(root.glob(f'{RUN}/*')) - before
    return made


def summary(directory):
    return json.loads((directory / 'scoring.json').read_text())


def num_kept(mask):
    return sum(int(tensor.sum()) for tensor in mask.values())


# ---- at initialisation

@pytest.mark.parametrize('strategy', METHODS)
def test_every_method_prunes_exactly_trains_from_the_first_weights_and_tells_its_cost(trunk, strategy):
    before = content_digests(trunk)
    made = folder(trunk, f'--strategy={strategy}', '--prune_fraction=0.75', *METHODS[strategy])
    assert artefacts(made) == {'mask.pth', 'sparsity_report.json', 'scoring.json', 'model_ep0_it0.pth',
                               'model_ep0_it2.pth', 'checkpoint.pth', 'logger'}
    mask, start, trained = (load(made / name) for name in ('mask.pth', 'model_ep0_it0.pth', 'model_ep0_it2.pth'))
    total = sum(tensor.numel() for tensor in mask.values())
    assert num_kept(mask) == total // 4
    [first] = trunk.glob(f'{RUN}/main/model_ep0_it0.pth')
    state = load(first)
    assert all(torch.equal(start[name], state[name] * mask.get(name, 1)) for name in state)
    assert all(not trained[name][mask[name] == 0].any() for name in mask)

    told = summary(made)
    assert (told['strategy'], told['num_kept'], told['num_prunable']) == (strategy, total // 4, total)
    assert told['num_rounds'] == dict(synflow=100, ntk_sap=2).get(strategy, 1)
    assert told['scoring_time_s'] > 0 and told['peak_memory_bytes'] >= 0 and told['device'] == 'cpu'
    assert told['layers'] == {name: {'num_weights': tensor.numel(), 'num_kept': int(tensor.sum())}
                              for name, tensor in mask.items()}
    unchanged = content_digests(trunk)
    assert {name: unchanged[name] for name in before} == before, 'the training run is only read'


def test_scoring_leaves_the_generators_where_loading_the_model_leaves_them(trunk):
    """Training after it draws the same numbers whatever the method drew."""
    states = [load(folder(trunk, f'--strategy={strategy}', '--prune_fraction=0.75', *METHODS[strategy], seed=7)
                   / 'rng_prune.pth') for strategy in ('magnitude', 'ntk_sap', 'prospr', 'grasp')]
    assert all(torch.equal(state['torch'], states[0]['torch']) for state in states)


def test_scores_depend_on_the_replicate_or_the_seed_only(trunk):
    flags = ('--strategy=ntk_sap', '--prune_fraction=0.75', *METHODS['ntk_sap'])
    plain, moved, other = (
        load(folder(trunk, *flags, *more, **kwargs) / 'mask.pth')
        for more, kwargs in (((), {}), (('--seed=1',), dict(seed=3)), (('--seed=2',), {})))
    assert same_state(plain, moved) and not same_state(plain, other)


def test_the_screen_tells_cost_and_collapse_and_the_run_goes_on(trunk):
    outcome = branch(trunk, '--strategy=magnitude', '--schedule=one_shot', '--prune_fraction=0.97', quiet=False)
    lines = outcome.out.splitlines()
    [cost] = [line for line in lines if line.startswith('Scored by magnitude in ')]
    [collapse] = [line for line in lines if line.startswith('Layer collapse: no weight is left in ')]
    assert ' s (cpu, peak memory ' in cost and ' weights stay, ' in cost
    [made] = trunk.glob(f'{RUN}/train_branch*')
    mask, told = load(made / 'mask.pth'), summary(made)
    empty = [name for name, tensor in mask.items() if not tensor.any()]
    assert empty and sorted(told['empty_layers']) == sorted(empty)
    assert collapse.split('left in ')[1].split(', ') == told['empty_layers']
    assert (made / 'model_ep0_it2.pth').exists()


def test_quiet_prints_nothing(trunk):
    assert branch(trunk, '--strategy=magnitude', '--schedule=one_shot', '--prune_fraction=0.97').out == ''


def test_a_finished_mask_is_not_made_again(trunk):
    flags = ('--strategy=snip', '--prune_fraction=0.5')
    made = folder(trunk, *flags)
    before = content_digests(made)
    (made / 'model_ep0_it2.pth').unlink()
    branch(trunk, *flags)
    assert content_digests(made) == before


@pytest.mark.parametrize('strategy', ENGINES)
def test_what_openlth_has_stays_openlths(trained, tmp_path, strategy):
    """The same names and bits with and without the extension, and one file more."""
    engine, extended = (shutil.copytree(trained, tmp_path / name) for name in ('engine', 'extended'))
    flags = (f'--strategy={strategy}', '--prune_fraction=0.9', '--prune_iterations=3')
    theirs = folder(engine, *flags)
    install()
    made = folder(extended, *flags)
    assert made.relative_to(extended) == theirs.relative_to(engine)
    ours = content_digests(made)
    assert content_digests(theirs) == {name: digest for name, digest in ours.items() if name != 'scoring.json'}
    assert summary(made)['schedule'] == 'openlth' and summary(made)['num_rounds'] == 3


def test_layers_can_be_exempt_and_count(trunk):
    made = folder(trunk, '--strategy=synflow', '--schedule=linear', '--prune_iterations=5', '--prune_fraction=0.5',
                  '--pruning_layers_to_ignore=fc.weight')
    mask = load(made / 'mask.pth')
    assert mask['fc.weight'].all() and num_kept(mask) == sum(tensor.numel() for tensor in mask.values()) // 2


def test_masks_are_shuffled_within_layers_if_asked(trunk):
    flags = ('--strategy=magnitude', '--schedule=one_shot', '--prune_fraction=0.9')
    plain, shuffled = (folder(trunk, *flags, *more) for more in ((), ('--randomize_layerwise',)))
    first, second = (load(made / 'mask.pth') for made in (plain, shuffled))
    assert not same_state(first, second) and summary(plain)['layers'] == summary(shuffled)['layers']
    assert all(first[name].sum() == second[name].sum() for name in first)


# ---- after training

def test_magnitude_after_training_fine_tunes_or_rewinds(trunk):
    [end] = trunk.glob(f'{RUN}/main/model_ep0_it2.pth')
    end, common = load(end), ('--strategy=magnitude', '--schedule=one_shot', '--prune_fraction=0.5', '--prune_step=2it')
    tuned = folder(trunk, *common, '--state_step=2it', '--start_step=1it')
    rewound = folder(trunk, *common)
    mask = load(tuned / 'mask.pth')
    assert same_state(mask, load(rewound / 'mask.pth'))
    kept, gone = (torch.cat([end[name][mask[name] == m].abs() for name in mask]) for m in (1, 0))
    assert kept.min() >= gone.max()
    start = load(tuned / 'model_ep0_it1.pth')
    assert all(torch.equal(start[name], end[name] * mask[name]) for name in mask)
    assert (rewound / 'model_ep0_it0.pth').exists()


def test_pruning_goes_on_from_the_mask_of_another_branch(trunk):
    first = folder(trunk, '--strategy=random', '--schedule=one_shot', '--prune_fraction=0.5')
    second = folder(trunk, '--strategy=snip', '--prune_fraction=0.75', f'--prune_experiment={first.name}',
                    '--prune_step=2it')
    before, after = (load(made / 'mask.pth') for made in (first, second))
    assert all((after[name] <= before[name]).all() for name in before) and num_kept(after) == num_kept(before) // 2


def test_iterative_prunes_and_trains_on(trunk):
    outcome = branch(trunk, '--strategy=magnitude', '--prune_fraction=0.2', '--num_rounds=2', '--start_step=1it',
                     name='iterative', quiet=False)
    [made] = trunk.glob(f'{RUN}/train_branch_iterative_*')
    [main] = trunk.glob(f'{RUN}/main')
    masks = [load(made / f'round_{number}' / 'mask.pth') for number in (1, 2)]
    total = sum(tensor.numel() for tensor in masks[0].values())
    left = [total - -(-total // 5)]
    left.append(left[0] - -(-left[0] // 5))
    assert [num_kept(mask) for mask in masks] == left
    assert all((masks[1][name] <= masks[0][name]).all() for name in masks[0])
    ends = [load(place / 'model_ep0_it2.pth') for place in (main, made / 'round_1')]
    for number, end, mask in zip((1, 2), ends, masks):
        start = load(made / f'round_{number}' / 'model_ep0_it1.pth')
        assert all(torch.equal(start[name], end[name] * mask[name]) for name in mask)
        assert summary(made / f'round_{number}')['num_kept'] == left[number - 1]
    assert outcome.out.count('Scored by magnitude') == 2
    before = content_digests(made)
    branch(trunk, '--strategy=magnitude', '--prune_fraction=0.2', '--num_rounds=2', '--start_step=1it',
           name='iterative')
    assert content_digests(made) == before


# ---- as lottery pruning strategies

LOTTERY = ('lottery', *FLAGS, '--no_dnnshifter', '--pruning_fraction=0.3')


@pytest.mark.parametrize('strategy', ['random', 'snip', 'synflow'])
def test_scores_prune_the_levels_of_a_lottery(root, strategy):
    install()
    outcome = succeed(*LOTTERY, f'--pruning_strategy={strategy}', '--pruning_layers_to_ignore=fc.weight', '--levels=2',
                      root=root)
    masks = [load(level(root, number) / 'mask.pth') for number in range(3)]
    left = [num_kept(mask) for mask in masks]
    assert left[1:] == [7 * left[0] // 10, 7 * (7 * left[0] // 10) // 10]
    assert all((after[name] <= before[name]).all() for before, after in zip(masks, masks[1:]) for name in before)
    assert masks[2]['fc.weight'].all()
    assert outcome.out.count(f'Scored by {strategy}') == 2
    assert summary(level(root, 2))['num_kept'] == left[2] and not (level(root, 0) / 'scoring.json').exists()


def test_help_says_which_strategies_there_are():
    install()
    text = ' '.join(run_engine('lottery', '--help', root='x').out.split())
    assert 'sparse_global prunes the smallest weights' in text and 'synflow' in text
    text = ' '.join(run_engine('branch', 'train', 'oneshot', '--help', root='x').out.split())
    assert all(name in text for name in METHODS) and 'docs/methods.md' in text


# ---- mistakes

ITERATIVE = ('--strategy=magnitude', '--prune_fraction=0.2', '--num_rounds=1', '--start_step=1it')


@pytest.mark.parametrize('flags, expected', [
    (('--strategy=nope',), 'ntk_sap, prospr'),
    (('--strategy=snip0',), 'no such --strategy'),
    (('--strategy=snip', '--schedule=cubic'), 'one_shot, linear, exponential'),
    (('--strategy=snip', '--schedule=one_shot', '--prune_iterations=2'), 'has one round'),
    (('--strategy=magnitude', '--pruning_layers_to_ignore=fc.weight'), 'needs --schedule'),
    (('--strategy=magnitude', '--strategy_options=a=1'), 'needs --schedule'),
    (('--strategy=prospr', '--strategy_options=num_step=1'), 'num_steps'),
    (('--strategy=ntk_sap', '--strategy_options=num_draws=0'), 'nothing is compared'),
    (('--strategy=snip', '--prune_fraction=0.9999'), '0 weights would stay'),
    (('--strategy=snip', '--pruning_layers_to_ignore=fc'), 'no prunable layer is called fc'),
    (('--strategy=grasp', '--strategy_options=temperature=0'), 'not numbers'),
], ids=' '.join)
def test_a_mistake_is_one_line_and_nothing_is_written(trunk, flags, expected):
    before = list_files(trunk)
    assert_one_line_error(branch(trunk, '--prune_fraction=0.5', *flags, run=run_engine), expected)
    assert list_files(trunk) == before


@pytest.mark.parametrize('flags, expected', [
    (('--start_step=2it',), 'not before the end'), (('--num_rounds=0',), '--num_rounds'),
    (('--prune_fraction=1',), '--prune_fraction'), (('--strategy=nope',), 'no such --strategy'),
    (('--lr=0.2',), 'Run `train`')], ids=' '.join)
def test_mistakes_of_iterative(trunk, flags, expected):
    before = list_files(trunk)
    assert_one_line_error(branch(trunk, *ITERATIVE, *flags, name='iterative', run=run_engine), expected)
    assert list_files(trunk) == before


def test_a_lottery_that_would_ignore_a_layer_it_does_not_have_is_refused_before_training(root):
    install()
    outcome = run_engine(*LOTTERY, '--pruning_strategy=snip', '--pruning_layers_to_ignore=fc', '--levels=1', root=root)
    assert_one_line_error(outcome, 'no layer fc', 'fc.weight')
    assert not root.exists()


# ---- the program as started

def test_the_program_from_start_to_end(trained, tmp_path):
    root = shutil.copytree(trained, tmp_path / 'trunk')
    outcome = subprocess.run(
        [sys.executable, 'main.py', 'branch', 'train', 'oneshot', *FLAGS, '--strategy=ntk_sap',
         '--prune_fraction=0.75', *METHODS['ntk_sap'], f'--root={root}'],
        cwd=REPOSITORY, text=True, capture_output=True, check=False, env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''})
    assert (outcome.returncode, outcome.stderr) == (0, '')
    assert 'Scored by ntk_sap in ' in outcome.stdout
    [told] = root.glob(f'{RUN}/train_branch*/scoring.json')
    assert json.loads(told.read_text())['options'] == dict(num_draws=1, epsilon=0.01)
