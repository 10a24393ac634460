"""Screens, exit statuses, and one clear line for each mistake a user can make."""

import errno
import os
import resource
import subprocess
import sys
from unittest import mock

import pytest

from tests.helpers import (
    REPOSITORY,
    TINY_FLAGS,
    TINY_LOTTERY,
    assert_one_line_error,
    content_digests,
    level,
    list_files,
    run_engine,
    run_main,
    succeed,
)


def run_program(*argv, **environment):
    """The program as a user starts it, in a process of its own."""

    return subprocess.run(
        [sys.executable, 'main.py', *map(str, argv)],
        cwd=REPOSITORY,
        text=True,
        env=os.environ | {'OMP_NUM_THREADS': '1'} | environment,
        capture_output=True,
        check=False,
    )


# ---- screens

@pytest.mark.parametrize('argv', [(), ('nope',), ('nope', '--levels=1'), ('--levels=1',)])
def test_no_or_unknown_command_lists_the_commands(argv):
    outcome = run_main(*argv)
    assert outcome.status == 1 and outcome.err == ''
    lines = outcome.out.splitlines()
    assert lines[0] == lines[-1] == '=' * 82 and lines[2] == '-' * 82
    assert [line.split(' [...] => ')[0] for line in lines[3:-1]] == [
        f'    * main.py {name}' for name in ('train', 'lottery', 'lottery_branch', 'branch')]


@pytest.mark.parametrize('argv, names', [
    (('lottery_branch',), ['randomly_prune', 'randomly_reinitialize', 'retrain']),
    (('lottery_branch', 'nope'), ['randomly_prune', 'randomly_reinitialize', 'retrain']),
    (('branch',), None), (('branch', 'nope'), None), (('branch', 'train'), ['oneshot']),
    (('branch', 'train', 'nope'), ['oneshot'])])
def test_no_or_unknown_branch_lists_the_branches(argv, names):
    outcome = run_main(*argv)
    assert outcome.status == 1 and outcome.err == '' and outcome.out
    if names:
        assert [name for name in names if f' {name} [...] => ' in outcome.out] == names


def test_unknown_platform_is_named():
    outcome = run_main('train', '--platform=moon')
    assert outcome.status == 1 and 'moon' in outcome.out and len(outcome.out.splitlines()) == 1


@pytest.mark.parametrize(
    'argv, groups',
    [
        (
            ('train',),
            [
                'High-Level Arguments',
                'Dataset Hyperparameters',
                'Model Hyperparameters',
                'Training Hyperparameters',
            ],
        ),
        (
            ('lottery',),
            [
                'High-Level Arguments',
                'Lottery Ticket Hyperparameters',
                'Rewinding/Pretraining Arguments',
                'Dataset Hyperparameters',
                'Model Hyperparameters',
                'Training Hyperparameters',
                'Pruning Hyperparameters',
            ],
        ),
        (('lottery_branch', 'retrain'), ['Rewinding/Pretraining Arguments', 'Branch Arguments']),
        (('branch', 'train', 'oneshot'), ['Training Hyperparameters', 'Branch Arguments']),
    ],
)
def test_help_shows_the_groups(argv, groups):
    outcome = run_main(*argv, '--help')
    assert outcome.status == 0
    assert f'{argv[0]} [...] => ' in outcome.out, 'the usage names the command, also for branches'
    positions = [outcome.out.find(f'\n{group}:') for group in groups]
    assert -1 not in positions and positions == sorted(positions)


def test_help_shows_the_defaults_of_a_model():
    assert '(default: 40ep)' in run_main('train', '--default_hparams=mnist_lenet_300_100', '--help').out
    assert '(default: 160ep)' in run_main('train', '--default_hparams=cifar_vgg_16', '--help').out


def test_pretrain_flags_appear_with_pretrain_only():
    assert '--pretrain_lr' not in run_main('lottery', '--help').out
    assert '--pretrain_lr' in run_main('lottery', '--pretrain', '--help').out


def test_pruning_flags_follow_the_strategy():
    assert '--pruning_fraction' not in run_main('lottery', '--help').out
    assert '--pruning_fraction' in run_main('lottery', '--pruning_strategy=sparse_global', '--help').out


def test_flags_may_be_abbreviated_and_separated_from_their_value(root):
    location = succeed(
        'train', '--default_hparams', 'cifar_resnet_20', '--repl', '3', '--display', root=root
    ).out
    assert location == f'{root}/train_71bc92a970b64a76d7ab7681764b0021/replicate_3/main\n'


# ---- mistakes

TRAIN = ('train', *TINY_FLAGS)
LOTTERY = (*TINY_LOTTERY, '--levels=1')
MISTAKES = [
    (*TRAIN, '--model_name=nope'),
    (*TRAIN, '--model_name=cifar_resnet_9'),
    (*TRAIN, '--model_name=cifar_vgg_²'),
    (*TRAIN, '--model_name=imagenet_resnet_18_x'),
    (*TRAIN, '--model_init=nope'),
    (*TRAIN, '--batchnorm_init=nope'),
    (*TRAIN, '--dataset_name=nope'),
    (*TRAIN, '--batch_size=0'),
    (*TRAIN, '--batch_size=-1'),
    (*TRAIN, '--subsample_fraction=0'),
    (*TRAIN, '--subsample_fraction=2'),
    (*TRAIN, '--random_labels_fraction=-1'),
    (*TRAIN, '--unsupervised_labels=nope'),
    (*TRAIN, '--blur_factor=0'),
    (*TRAIN, '--optimizer_name=nope'),
    (*TRAIN, '--training_steps=nope'),
    (*TRAIN, '--training_steps=10'),
    (*TRAIN, '--training_steps=-1ep'),
    (*TRAIN, '--training_steps='),
    (*TRAIN, '--milestone_steps=1ep'),
    (*TRAIN, '--gamma=0.1'),
    (*TRAIN, '--milestone_steps=1ep,x', '--gamma=0.1'),
    (*TRAIN, '--warmup_steps=x'),
    (*TRAIN, '--lr=-1'),
    (*TRAIN, '--lr=nan'),
    (*TRAIN, '--amp=fp8'),
    (*TRAIN, '--weight_save_steps=x'),
    (*TRAIN, '--others_frozen', '--others_frozen_exceptions=nope'),
    (*TRAIN, '--transformation_seed=-5', '--random_labels_fraction=0.5'),
    (*TRAIN, '--num_workers=-1'),
    (*TRAIN, '--data_order_seed=99999999999999999999'),
    ('train', '--default_hparams=nope'),
    ('lottery', '--default_hparams=cifar_vgg_5', '--levels=1', '--pretrain', '--pretrain_training_steps=x'),
    (*LOTTERY, '--pruning_strategy=nope'),
    (*LOTTERY, '--pruning_fraction=1'),
    (*LOTTERY, '--pruning_fraction=-0.1'),
    (*LOTTERY, '--pruning_fraction=nan'),
    (*LOTTERY, '--levels=-1'),
    (*LOTTERY, '--replicate=0'),
    (*LOTTERY, '--rewinding_steps=x'),
    (*LOTTERY, '--rewinding_steps=3ep'),
    (*LOTTERY, '--rewinding_steps=1ep', '--pretrain'),
    ('lottery_branch', 'randomly_prune', *LOTTERY[1:], '--seed=1', '--levels=1-'),
    ('lottery_branch', 'randomly_prune', *LOTTERY[1:], '--seed=1', '--levels=x'),
    ('lottery_branch', 'randomly_prune', *LOTTERY[1:], '--seed=1', '--strategy=nope'),
    ('lottery_branch', 'randomly_reinitialize', *LOTTERY[1:], '--replicate=0'),
    ('branch', 'train', 'oneshot', *TINY_FLAGS, '--strategy=nope', '--prune_fraction=0.5'),
    ('branch', 'train', 'oneshot', *TINY_FLAGS, '--strategy=snip0', '--prune_fraction=0.5'),
    ('branch', 'train', 'oneshot', *TINY_FLAGS, '--strategy=magnitude', '--prune_fraction=1'),
]


@pytest.mark.parametrize('argv', MISTAKES, ids=lambda argv: f'{argv[0]} ' + ' '.join(argv[-2:]))
def test_a_mistake_gives_one_line_and_writes_nothing(argv, root):
    assert_one_line_error(run_engine(*argv, root=root))
    assert not root.exists()


ARGPARSE_MISTAKES = [
    ('train',),
    ('train', '--default_hparams='),
    ('lottery', *TINY_FLAGS),
    ('lottery', *TINY_FLAGS, '--levels=1'),
    (*LOTTERY, '--levels=x'),
    (*TRAIN, '--bogus=1'),
    (*TRAIN, '--lr=x'),
    (*TRAIN, '--batch_size=1.5'),
    (*TRAIN, '--replicate=x'),
    ('lottery_branch', 'randomly_prune', *LOTTERY[1:]),
    ('branch', 'train', 'oneshot', *TINY_FLAGS),
    (*TRAIN, 'stray'),
    (*LOTTERY, '--pretrain'),
]


@pytest.mark.parametrize('argv', ARGPARSE_MISTAKES, ids=lambda argv: f'{argv[0]} ' + ' '.join(argv[-2:]))
def test_missing_and_unknown_flags_and_bad_types_are_argparses_errors(argv, root):
    outcome = run_engine(*argv, root=root)
    assert outcome.status == 2 and 'Traceback' not in outcome.err
    assert 'error: ' in outcome.error_lines[-1]
    assert not root.exists()


@pytest.mark.parametrize('argv', [(*TRAIN, '--dataset_name=mnist', '--model_name=mnist_lenet_10'),
                                  (*LOTTERY, '--dataset_name=cifar10')])
def test_absent_data_give_one_line_and_write_nothing(argv, root, tmp_path):
    outcome = run_engine(*argv, root=root, dataset_root=tmp_path / 'absent')
    assert_one_line_error(outcome, tmp_path / 'absent')
    assert not list_files(root)


def test_a_model_that_does_not_take_the_images_gives_one_line(root):
    assert_one_line_error(run_engine(*TRAIN, '--model_name=mnist_lenet_10', root=root))


# ---- folders and disks

def test_a_root_that_cannot_be_written_is_named(tmp_path):
    """A folder below a regular file: not even the superuser can make it."""

    (tmp_path / 'file').write_text('x')
    root = tmp_path / 'file' / 'root'
    for argv in (TRAIN, LOTTERY):
        assert_one_line_error(run_engine(*argv, root=root), root)
    assert (tmp_path / 'file').read_text() == 'x'


@pytest.fixture(scope='module')
def untroubled(tmp_path_factory):
    """The files of a run that nothing happened to."""

    root = tmp_path_factory.mktemp('untroubled')
    succeed(*LOTTERY, '--levels=0', root=root)
    return content_digests(root)


@pytest.mark.parametrize('function', ['fsync', 'replace'])
@pytest.mark.parametrize('calls_before', [0, 7])
def test_a_full_disk_gives_one_line_and_the_run_goes_on_later(root, untroubled, function, calls_before):
    real, calls = getattr(os, function), []

    def fail_later(*args, **kwargs):
        calls.append(args)
        if len(calls) > calls_before:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **kwargs)

    with mock.patch.object(os, function, fail_later):
        assert_one_line_error(run_engine(*LOTTERY, '--levels=0', root=root), 'No space left on device')
    assert not [name for name in list_files(root) if name.endswith('.tmp')]
    succeed(*LOTTERY, '--levels=0', root=root)
    assert content_digests(root) == untroubled


def test_a_write_that_fails_in_the_middle_of_a_file_gives_one_line(root):
    """A limit on the size of files stands for the full disk: the first bytes still go through."""

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        outcome = run_engine(*LOTTERY, root=root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_one_line_error(outcome)
    assert not [name for name in list_files(root) if name.endswith(('.tmp', 'model_ep0_it0.pth'))]


# ---- folders from the environment

def test_folders_come_from_flags_then_environment_then_home(tmp_path, monkeypatch):
    def location(*flags):
        return run_main('train', '--default_hparams=cifar_resnet_20', '--display_output_location', *flags).out

    assert location().startswith(f'{os.environ["HOME"]}/open_lth_data/train_')
    monkeypatch.setenv('OPEN_LTH_ROOT', str(tmp_path / 'environment'))
    assert location().startswith(f'{tmp_path}/environment/train_')
    assert location(f'--root={tmp_path}/flag').startswith(f'{tmp_path}/flag/train_')


# ---- the program as started

@pytest.fixture(scope='module')
def program_root(tmp_path_factory):
    return tmp_path_factory.mktemp('program')


@pytest.mark.parametrize('argv, status, one_line', [
    ((), 1, False), (('train', '--default_hparams=nope'), 2, True),
    ((*LOTTERY, '--bogus'), 2, False)], ids=lambda value: str(value)[-30:])
def test_exit_status_of_the_program(argv, status, one_line, program_root):
    outcome = run_program(*argv, OPEN_LTH_ROOT=str(program_root))
    assert outcome.returncode == status and 'Traceback' not in outcome.stderr
    if one_line:
        assert len(outcome.stderr.splitlines()) == 1
    assert not list_files(program_root)


def test_the_program_from_start_to_end(program_root):
    outcome = run_program(*LOTTERY, '--levels=0', '--no_dnnshifter', f'--root={program_root}')
    assert (outcome.returncode, outcome.stdout, outcome.stderr) == (0, '', '')
    assert (level(program_root, 0) / 'logger').is_file()


def test_a_reader_that_leaves_is_no_error(root):
    """As in `main.py train ... | head -1`."""

    command = f'{sys.executable} main.py {" ".join(TRAIN)} --root={root} | head -1'
    outcome = subprocess.run(command, shell=True, cwd=REPOSITORY, text=True, capture_output=True, check=False)
    assert outcome.stdout == '=' * 82 + '\n' and 'Traceback' not in outcome.stderr
