"""A damaged file in a run directory gives one line with its path, and is never overwritten or half-loaded."""

import shutil

import pytest
import torch

from tests.helpers import TINY_FLAGS, TINY_LOTTERY, assert_one_line_error, level, load, run_engine, succeed

LEVEL_1_BEGUN = ('logger', 'model_ep2_it0.pth', 'rng_train.pth')


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp('finished')
    succeed(*TINY_LOTTERY, '--levels=1', '--rewinding_steps=1ep', root=root)
    return root


@pytest.fixture
def begun(finished, tmp_path):
    """An experiment whose level 1 was killed at the end, its checkpoint on disk."""

    root = shutil.copytree(finished, tmp_path / 'root')
    for name in LEVEL_1_BEGUN:
        (level(root, 1) / name).unlink()
    return root


def go_on(root, *flags):
    return run_engine(*TINY_LOTTERY, '--levels=1', '--rewinding_steps=1ep', *flags, root=root)


def damage(path, how):
    content = path.read_bytes()
    path.write_bytes({'empty': b'', 'truncated': content[:len(content) // 2], 'cut short': content[:-1],
                      'rubbish': b'rubbish' * 100, 'zeroed': bytes(len(content))}[how])


@pytest.mark.parametrize('how', ['empty', 'truncated', 'cut short', 'rubbish', 'zeroed'])
@pytest.mark.parametrize(
    'number, name',
    [
        (1, 'checkpoint.pth'),
        (1, 'mask.pth'),
        (0, 'model_ep1_it0.pth'),
        (0, 'rng_init.pth'),
        (0, 'rng_train.pth'),
        (1, 'rng_prune.pth'),
    ],
)
def test_damaged_file_is_named_and_kept(begun, number, name, how):
    path = level(begun, number) / name
    damage(path, how)
    before = path.read_bytes()
    assert_one_line_error(go_on(begun), path)
    assert path.read_bytes() == before
    assert not (level(begun, 1) / 'model_ep2_it0.pth').exists()


@pytest.mark.parametrize('how', ['empty', 'truncated', 'rubbish'])
def test_damaged_weights_of_the_level_before(finished, tmp_path, how):
    root = shutil.copytree(finished, tmp_path / 'root')
    shutil.rmtree(level(root, 1))
    path = level(root, 0) / 'model_ep2_it0.pth'
    damage(path, how)
    assert_one_line_error(go_on(root), path)
    assert not (level(root, 1) / 'mask.pth').exists()


OTHER_MODEL = {'conv.weight': torch.ones(3, 3), 'strange.weight': torch.ones(2)}


@pytest.mark.parametrize('number, name, change', [
    (0, 'model_ep1_it0.pth', lambda state: OTHER_MODEL),
    (0, 'model_ep1_it0.pth', lambda state: {name: state[name] for name in list(state)[:-1]}),
    (0, 'model_ep1_it0.pth', lambda state: [1, 2]),
    (1, 'checkpoint.pth', lambda checkpoint: checkpoint | {'model_state_dict': OTHER_MODEL}),
    (1, 'checkpoint.pth', lambda checkpoint: {'ep': 1}),
    (1, 'mask.pth', lambda mask: {name: tensor[:1] for name, tensor in mask.items()}),
    (1, 'mask.pth', lambda mask: mask | {'strange.weight': torch.ones(2, dtype=torch.int32)}),
    (1, 'mask.pth', lambda mask: {name: mask[name] for name in list(mask)[1:]}),
    (1, 'mask.pth', lambda mask: {name: 2 * tensor for name, tensor in mask.items()}),
    (1, 'mask.pth', lambda mask: {}),
    (1, 'rng_prune.pth', lambda state: {'torch': torch.zeros(3, dtype=torch.uint8)}),
    (1, 'rng_prune.pth', lambda state: [])])
def test_file_of_another_architecture_is_named_and_kept(begun, number, name, change):
    path = level(begun, number) / name
    torch.save(change(load(path)), path)
    before = path.read_bytes()
    assert_one_line_error(go_on(begun), path)
    assert path.read_bytes() == before


def test_temporary_files_of_a_killed_writer_do_no_harm(begun, finished):
    (level(begun, 1) / '.model_ep2_it0.pth.abc.tmp').write_bytes(b'half')
    succeed(*TINY_LOTTERY, '--levels=1', '--rewinding_steps=1ep', root=begun)
    assert (level(begun, 1) / 'logger').read_text() == (level(finished, 1) / 'logger').read_text()


def test_damaged_checkpoint_of_a_training_run(root):
    succeed('train', *TINY_FLAGS, '--quiet', root=root)
    [folder] = root.glob('train_*/replicate_1/main')
    (folder / 'model_ep2_it0.pth').unlink()
    damage(folder / 'checkpoint.pth', 'truncated')
    assert_one_line_error(run_engine('train', *TINY_FLAGS, '--quiet', root=root), folder / 'checkpoint.pth')
