"""`branch train oneshot` on a small run. Its golden runs: tests/open_lth/golden/test_fork_oneshot.py."""

import shutil

import pytest
import torch

from open_lth.utils.tensor_utils import shuffle_state_dict
from tests.helpers import (
    TINY_FLAGS,
    artefacts,
    assert_one_line_error,
    list_files,
    load,
    run_engine,
    same_state,
    succeed,
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp('trunk')
    succeed('train', *TINY_FLAGS, '--quiet', '--weight_save_steps=1it', root=root)
    return root


@pytest.fixture
def trunk(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / 'trunk')


def oneshot(root, *flags, run=succeed):
    """Runs the branch; its folder, or the outcome if something else than `succeed` runs it."""

    before = set(root.glob('train_*/replicate_1/*'))
    outcome = run('branch', 'train', 'oneshot', *TINY_FLAGS, '--quiet', *flags, root=root)
    if run is not succeed:
        return outcome
    [folder] = set(root.glob('train_*/replicate_1/*')) - before
    return folder


def main_folder(root):
    return next(root.glob('train_*/replicate_1/main'))


@pytest.mark.parametrize('strategy', ['random', 'magnitude', 'snip2', 'grasp2', 'graspabs2', 'synflow'])
def test_every_strategy_prunes_what_is_asked_and_one_more(trunk, strategy):
    folder = oneshot(trunk, f'--strategy={strategy}', '--prune_fraction=0.5')
    mask = load(folder / 'mask.pth')
    total = sum(tensor.numel() for tensor in mask.values())
    assert sum(int(tensor.sum()) for tensor in mask.values()) == total - -(-total // 2) - 1
    trained = load(folder / 'model_ep2_it0.pth')
    assert all(not trained[name][mask[name] == 0].any() for name in mask)
    assert artefacts(folder) == {'mask.pth', 'sparsity_report.json', 'model_ep0_it0.pth', 'model_ep2_it0.pth',
                                 'checkpoint.pth', 'logger'}


def test_highest_scores_go_if_asked(trunk):
    masks = [load(oneshot(trunk, '--strategy=magnitude', '--prune_fraction=0.5', *flags) / 'mask.pth')
             for flags in ((), ('--prune_highest',))]
    both = sum(int((masks[0][name] * masks[1][name]).sum()) for name in masks[0])
    assert both == 0, 'what one keeps the other prunes'


def test_pruning_in_rounds_reaches_the_same_fraction(trunk):
    mask = load(
        oneshot(trunk, '--strategy=synflow', '--prune_fraction=0.9', '--prune_iterations=20') / 'mask.pth'
    )
    kept, total = (sum(number(tensor) for tensor in mask.values()) for number in
                   (lambda tensor: int(tensor.sum()), torch.Tensor.numel))
    assert 0.1 * total - 40 <= kept <= 0.1 * total


def test_fraction_0_keeps_everything(trunk):
    assert all(tensor.all() for tensor in load(
        oneshot(trunk, '--strategy=random', '--prune_fraction=0.0') / 'mask.pth').values())


def test_masks_can_be_shuffled_within_layers(trunk):
    plain, shuffled = (load(oneshot(trunk, '--strategy=magnitude', '--prune_fraction=0.5', '--seed=3', *flags)
                            / 'mask.pth') for flags in ((), ('--randomize_layerwise',)))
    assert same_state(shuffled, shuffle_state_dict(plain, 3))


def test_mask_from_one_step_and_weights_from_another(trunk):
    folder = oneshot(
        trunk,
        '--strategy=magnitude',
        '--prune_fraction=0.5',
        '--prune_step=2ep',
        '--state_step=1it',
        '--start_step=1it',
    )
    mask, start = load(folder / 'mask.pth'), load(folder / 'model_ep0_it1.pth')
    pruned_from, state = (
        load(main_folder(trunk) / name) for name in ('model_ep2_it0.pth', 'model_ep0_it1.pth')
    )
    assert all(torch.equal(start[name], state[name] * mask[name]) for name in mask)
    kept, gone = (
        torch.cat([pruned_from[name][mask[name] == keep].abs() for name in mask]) for keep in (1, 0)
    )
    assert kept.min() > gone.max()


def test_reinitialized_weights_are_new(trunk):
    folder = oneshot(trunk, '--strategy=magnitude', '--prune_fraction=0.5', '--reinitialize')
    start, state = load(folder / 'model_ep0_it0.pth'), load(main_folder(trunk) / 'model_ep0_it0.pth')
    assert not same_state(start, state) and start['fc.bias'].shape == state['fc.bias'].shape


def test_seed_is_the_replicate_by_default(trunk):
    random, seeded, other = (
        load(oneshot(trunk, '--strategy=random', '--prune_fraction=0.5', *flags) / 'mask.pth')
        for flags in ((), ('--seed=1',), ('--seed=2',))
    )
    assert same_state(random, seeded) and not same_state(random, other)


def test_data_dependent_scores_work_with_a_subsample(trunk):
    """Fixed: the fork raises IndexError."""

    assert oneshot(trunk, '--strategy=snip3', '--prune_fraction=0.5').is_dir()


@pytest.mark.parametrize('flags', [
    ('--strategy=snip0', '--prune_fraction=0.5'), ('--strategy=nope', '--prune_fraction=0.5'),
    ('--strategy=magnitude', '--prune_fraction=1.0'), ('--strategy=magnitude', '--prune_fraction=-0.5'),
    ('--strategy=magnitude', '--prune_fraction=0.5', '--prune_iterations=0'),
    ('--strategy=magnitude', '--prune_fraction=0.5', '--prune_step=oops'),
    ('--strategy=magnitude', '--prune_fraction=0.5', '--state_step=4it'),
    ('--strategy=magnitude', '--prune_fraction=0.5', '--replicate=0'),
    ('--strategy=magnitude', '--prune_fraction=0.5', '--prune_experiment=nope'),
    ('--strategy=magnitude', '--prune_fraction=0.99999')])
def test_impossible_requests_write_nothing(trunk, flags):
    before = list_files(trunk)
    assert_one_line_error(oneshot(trunk, *flags, run=run_engine))
    assert list_files(trunk) == before


def test_the_training_run_must_exist(root):
    root.mkdir()
    outcome = oneshot(root, '--strategy=magnitude', '--prune_fraction=0.5', run=run_engine)
    assert_one_line_error(outcome, 'train')
    assert not list_files(root)
