import pytest

from tests.helpers import TINY_FLAGS, artefacts, content_digests, list_files, load, run_engine, succeed


def train(root, *flags, **kwargs):
    return succeed('train', *TINY_FLAGS, *flags, root=root, **kwargs)


def test_files_and_frame(root):
    outcome = train(root)
    [folder] = root.glob('train_*/replicate_1/main')
    assert artefacts(folder) == {
        'hparams.log',
        'logger',
        'checkpoint.pth',
        'model_ep0_it0.pth',
        'model_ep2_it0.pth',
    }
    lines = outcome.out.splitlines()
    assert lines[:2] == ['=' * 82, 'Training a Model (Replicate 1)']
    assert f'Output Location: {folder}' in lines
    assert [line.split('\t')[1:3] for line in lines if line.startswith('test\t')] == [
        ['ep 000', 'it 000'], ['ep 001', 'it 000'], ['ep 002', 'it 000']]
    assert outcome.err == ''


def test_quiet_says_nothing_at_all(root):
    """Fixed: OpenLTH still prints the evaluations."""

    outcome = train(root, '--quiet')
    assert outcome.out == '' and outcome.err == ''


def test_hparams_log_holds_what_was_asked(root):
    train(root, '--quiet', '--weight_decay=0.01')
    [path] = root.glob('train_*/replicate_1/main/hparams.log')
    text = path.read_text()
    assert text.startswith('Dataset Hyperparameters\n    * dataset_name => digits\n    * batch_size => 30')
    assert text.endswith('    * momentum => 0.9\n    * weight_decay => 0.01')


def test_the_same_command_gives_the_same_bits(root, tmp_path):
    train(root, '--quiet')
    train(tmp_path / 'again', '--quiet')
    assert content_digests(root) == content_digests(tmp_path / 'again')


def test_workers_change_the_draws_but_not_the_run_directory(root, tmp_path):
    train(root, '--quiet')
    train(tmp_path / 'workers', '--quiet', '--num_workers=2')
    assert artefacts(root) == artefacts(tmp_path / 'workers')


def test_runs_with_workers_repeat(root, tmp_path):
    for folder in (root, tmp_path / 'again'):
        train(folder, '--quiet', '--num_workers=2')
    assert content_digests(root) == content_digests(tmp_path / 'again')


def test_a_finished_run_is_left_alone(root):
    train(root)
    before = {
        name: (root / name).stat().st_mtime_ns
        for name in list_files(root)
        if not name.endswith('hparams.log')
    }
    outcome = train(root)
    assert {name: (root / name).stat().st_mtime_ns for name in before} == before
    assert 'test\t' not in outcome.out


@pytest.mark.parametrize('flags', [
    ('--unsupervised_labels=rotation',), ('--blur_factor=2',), ('--random_labels_fraction=0.5',),
    ('--do_not_augment', '--transformation_seed=3'), ('--optimizer_name=adam', '--lr=0.001'),
    ('--nesterov_momentum=0.9',), ('--model_init=binary', '--batchnorm_init=fixed', '--batchnorm_frozen'),
    ('--warmup_steps=0it',), ('--channels_last', '--amp=bf16'), ('--apex_fp16',)], ids=lambda flags: flags[0])
def test_options_that_have_to_work(root, flags):
    """Among them what fails in OpenLTH: blur, a warm-up of no steps, fp16 without apex."""

    train(root, '--quiet', '--training_steps=2it', *flags)
    [logger] = root.glob('train_*/replicate_1/main/logger')
    assert 'test_loss,2,' in logger.read_text() and 'nan' not in logger.read_text()


def test_rotation_keeps_the_familys_outputs(root):
    """Reproduced: 10 outputs for 4 classes."""

    train(root, '--quiet', '--training_steps=1it', '--unsupervised_labels=rotation')
    [path] = root.glob('train_*/replicate_1/main/model_ep0_it1.pth')
    assert load(path)['fc.bias'].shape == (10,)


def test_display_output_location_writes_nothing(root):
    outcome = run_engine('train', *TINY_FLAGS, '--display_output_location', root=root)
    assert outcome.out.startswith(f'{root}/train_') and outcome.out.count('\n') == 1
    assert not root.exists()
