"""The three branches on a small experiment. Their golden runs are in tests/open_lth/golden/test_e2e.py."""

import shutil

import pytest
import torch

from open_lth.utils.tensor_utils import shuffle_state_dict
from tests.helpers import (
    TINY_LOTTERY,
    artefacts,
    assert_one_line_error,
    level,
    list_files,
    load,
    run_engine,
    same_state,
    succeed,
)


@pytest.fixture(scope='module')
def trunks(tmp_path_factory):
    """Roots of an experiment of two levels, plain and rewound."""

    roots = {}
    for name, flags in dict(plain=(), rewound=('--rewinding_steps=3it',)).items():
        roots[name] = tmp_path_factory.mktemp(name)
        succeed(*TINY_LOTTERY, '--levels=2', *flags, root=roots[name])
    return roots


@pytest.fixture
def trunk(trunks, tmp_path):
    return shutil.copytree(trunks['plain'], tmp_path / 'trunk')


@pytest.fixture
def rewound(trunks, tmp_path):
    return shutil.copytree(trunks['rewound'], tmp_path / 'rewound')


def branch(root, name, *flags, levels='1', run=succeed):
    return run('lottery_branch', name, *TINY_LOTTERY[1:], f'--levels={levels}', *flags, root=root)


def folder_of(root, number, name):
    [folder] = level(root, number, '').glob(f'lottery_branch_{name}_*')
    return folder


RETRAIN = (
    '--retrain_d_dataset_name=digits',
    '--retrain_d_batch_size=20',
    '--retrain_d_subsample_fraction=0.1',
    '--retrain_t_optimizer_name=sgd',
    '--retrain_t_lr=0.05',
    '--retrain_t_training_steps=1ep',
)


# ---- randomly_prune

def test_layerwise_masks_are_shuffled_within_each_layer(trunk):
    branch(trunk, 'randomly_prune', '--seed=7', levels='1-2')
    for number in (1, 2):
        mask = load(level(trunk, number) / 'mask.pth')
        assert same_state(
            load(folder_of(trunk, number, 'randomly_prune') / 'mask.pth'), shuffle_state_dict(mask, 7)
        )


def test_global_masks_keep_only_the_total(trunk):
    branch(trunk, 'randomly_prune', '--seed=7', '--strategy=global')
    mask, shuffled = (load(folder / 'mask.pth') for folder in
                      (level(trunk, 1), folder_of(trunk, 1, 'randomly_prune')))
    kept, kept_shuffled = (
        {name: int(tensor.sum()) for name, tensor in state.items()} for state in (mask, shuffled)
    )
    assert kept != kept_shuffled and sum(kept.values()) == sum(kept_shuffled.values())


def test_identity_repeats_the_level(trunk):
    branch(trunk, 'randomly_prune', '--seed=7', '--strategy=identity')
    assert same_state(
        load(folder_of(trunk, 1, 'randomly_prune') / 'mask.pth'), load(level(trunk, 1) / 'mask.pth')
    )


def test_weights_kept_by_the_random_mask_only_start_from_zero(trunk):
    """Reproduced: the branch starts from the level's own weights, which its mask has been applied to."""

    branch(trunk, 'randomly_prune', '--seed=7')
    folder = folder_of(trunk, 1, 'randomly_prune')
    random_mask, mask = load(folder / 'mask.pth'), load(level(trunk, 1) / 'mask.pth')
    start, own = load(folder / 'model_ep0_it0.pth'), load(level(trunk, 1) / 'model_ep0_it0.pth')
    for name in mask:
        assert torch.equal(start[name], own[name] * random_mask[name])
        revived = (random_mask[name] == 1) & (mask[name] == 0)
        assert not start[name][revived].any()


def test_ignored_layers_are_kept_whole(trunk):
    branch(trunk, 'randomly_prune', '--seed=7', '--layers_to_ignore=fc.weight')
    mask = load(folder_of(trunk, 1, 'randomly_prune') / 'mask.pth')
    assert mask['fc.weight'].all() and not mask['blocks.2.conv2.weight'].all()


@pytest.mark.parametrize('start_at, source', [('init', 'model_ep0_it0.pth'), ('end', 'model_ep2_it0.pth')])
def test_start_at(trunk, start_at, source):
    branch(trunk, 'randomly_prune', '--seed=7', f'--start_at={start_at}')
    folder = folder_of(trunk, 1, 'randomly_prune')
    mask, state = load(folder / 'mask.pth'), load(level(trunk, 1) / source)
    start = load(folder / 'model_ep0_it0.pth')
    assert all(torch.equal(start[name], state[name] * mask[name]) for name in mask)


def test_start_at_rewind_is_the_rewinding_step(rewound):
    branch(rewound, 'randomly_prune', '--seed=7', '--rewinding_steps=3it')
    assert 'model_ep0_it3.pth' in artefacts(folder_of(rewound, 1, 'randomly_prune'))


@pytest.mark.parametrize('flags', [
    ('--strategy=even',), ('--strategy=nope',), ('--start_at=nope',), ('--layers_to_ignore=nope.weight',)])
def test_unknown_options_are_refused_before_anything_is_written(trunk, flags):
    """Among them `even`, which never worked in OpenLTH."""

    before = list_files(trunk)
    assert_one_line_error(branch(trunk, 'randomly_prune', '--seed=7', *flags, run=run_engine))
    assert list_files(trunk) == before


def test_start_at_init_after_rewinding_is_refused(rewound):
    """Fixed: the level has no weights of step 0; OpenLTH fails after it has written a mask."""

    before = list_files(rewound)
    outcome = branch(
        rewound, 'randomly_prune', '--seed=7', '--rewinding_steps=3it', '--start_at=init', run=run_engine
    )
    assert_one_line_error(outcome, 'ep0 it0')
    assert list_files(rewound) == before


# ---- the other two

def test_reinitialized_weights_are_new_under_the_levels_mask(trunk):
    branch(trunk, 'randomly_reinitialize')
    folder = folder_of(trunk, 1, 'randomly_reinitialize')
    mask, start = load(folder / 'mask.pth'), load(folder / 'model_ep0_it0.pth')
    own = load(level(trunk, 1) / 'model_ep0_it0.pth')
    assert same_state(mask, load(level(trunk, 1) / 'mask.pth'))
    assert all(not start[name][mask[name] == 0].any() for name in mask)
    assert not torch.equal(start['conv.weight'], own['conv.weight'])


@pytest.mark.parametrize(
    'flags, first', [((), 'model_ep0_it3.pth'), (('--start_at_step_zero',), 'model_ep0_it0.pth')]
)
def test_reinitialized_weights_start_at_the_rewinding_step_or_zero(rewound, flags, first):
    branch(rewound, 'randomly_reinitialize', '--rewinding_steps=3it', *flags)
    assert first in artefacts(folder_of(rewound, 1, 'randomly_reinitialize'))


def test_retraining_uses_the_other_data_and_hyperparameters(trunk):
    branch(trunk, 'retrain', *RETRAIN)
    folder = folder_of(trunk, 1, 'retrain')
    assert artefacts(folder) == {'model_ep0_it0.pth', 'model_ep1_it0.pth', 'checkpoint.pth', 'logger'}
    assert same_state(load(folder / 'model_ep0_it0.pth'), load(level(trunk, 1) / 'model_ep0_it0.pth'))
    checkpoint = load(folder / 'checkpoint.pth')
    assert checkpoint['optimizer_state_dict']['param_groups'][0]['lr'] == 0.05
    assert 'test_loss,8,' in (folder / 'logger').read_text(), '8 iterations of 20 images'


def test_retraining_starts_at_the_same_iteration(rewound):
    branch(rewound, 'retrain', '--rewinding_steps=3it', *RETRAIN)
    assert 'model_ep0_it3.pth' in artefacts(folder_of(rewound, 1, 'retrain'))


# ---- all of them

BRANCHES = {'randomly_prune': ('--seed=7',), 'randomly_reinitialize': (), 'retrain': RETRAIN}


@pytest.mark.parametrize('name', BRANCHES)
def test_a_branch_never_touches_its_trunk(trunk, name):
    before = {path: path.stat().st_mtime_ns for path in trunk.rglob('*') if path.is_file()}
    branch(trunk, name, *BRANCHES[name])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not [path for path in list_files(trunk) if 'branch' in path and path.endswith('hparams.log')]


@pytest.mark.parametrize('name', BRANCHES)
def test_a_branch_needs_trained_levels(root, trunk, name):
    assert_one_line_error(branch(root, name, *BRANCHES[name], run=run_engine), 'level 1')
    before = list_files(trunk)
    assert_one_line_error(branch(trunk, name, *BRANCHES[name], levels='5', run=run_engine), 'level 5')
    assert list_files(trunk) == before


@pytest.mark.parametrize('name', BRANCHES)
def test_evaluation_only_at_the_ends(trunk, name):
    """Fixed: OpenLTH accepts the flag and ignores it."""

    branch(trunk, name, *BRANCHES[name], '--evaluate_only_at_end')
    lines = (folder_of(trunk, 1, name) / 'logger').read_text().splitlines()
    assert len({line.split(',')[1] for line in lines}) == 2


def test_empty_range_of_levels_does_nothing(trunk):
    before = list_files(trunk)
    branch(trunk, 'randomly_prune', '--seed=7', levels='2-1')
    assert list_files(trunk) == before


def test_a_finished_branch_is_left_alone(trunk):
    branch(trunk, 'randomly_prune', '--seed=7')
    folder = folder_of(trunk, 1, 'randomly_prune')
    before = (folder / 'model_ep2_it0.pth').stat().st_mtime_ns
    branch(trunk, 'randomly_prune', '--seed=7')
    assert (folder / 'model_ep2_it0.pth').stat().st_mtime_ns == before
