import numpy as np
import pytest
import torch

from open_lth.datasets import registry as datasets
from open_lth.foundations.step import Step
from open_lth.training.checkpointing import save_checkpoint_callback
from open_lth.training.train import standard_train, train
from tests.helpers import artefacts, build_model, list_files, load, same_state, state_of, tiny_desc

pytestmark = pytest.mark.usefixtures('local_platform')
PER_EPOCH = 5


def step(text):
    return Step.from_str(text, PER_EPOCH)


def train_tiny(tmp_path, callbacks=(), desc=None, model=None, seed=1, **steps):
    """Trains (a fresh model, a fixed seed) and returns the model."""

    desc = desc or tiny_desc()
    model = model or build_model(desc)
    torch.manual_seed(seed)
    train(
        desc.training_hparams,
        model,
        datasets.get(desc.dataset_hparams),
        str(tmp_path),
        list(callbacks),
        **steps,
    )
    return model


class Recorder:
    """A callback that notes where and with what it was called."""

    def __init__(self):
        self.steps, self.states, self.rates = [], [], []

    def __call__(self, output_location, step, model, optimizer, logger):
        self.steps.append((step.ep, step.it))
        self.states.append(state_of(model))
        self.rates.append(optimizer.param_groups[0]['lr'])


class RecordingLoader:
    """Passes on a loader's batches and notes the shuffles and the labels served."""

    def __init__(self, loader):
        self._loader = loader
        self.shuffles, self.served = [], []
        self.iterations_per_epoch = loader.iterations_per_epoch

    def shuffle(self, seed):
        self.shuffles.append(seed)
        self._loader.shuffle(seed)

    def __iter__(self):
        for batch in self._loader:
            self.served.append(batch)
            yield batch


# ---- steps and calls

def test_callbacks_run_before_each_iteration_and_at_the_end(tmp_path):
    recorder = Recorder()
    model = train_tiny(tmp_path, [recorder])
    assert recorder.steps == [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 0),
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 0),
    ]
    assert same_state(recorder.states[-1], state_of(model))
    assert not same_state(recorder.states[0], recorder.states[1]), 'training changes the weights'


def test_callbacks_run_in_list_order_with_all_arguments(tmp_path):
    calls = []
    callbacks = [lambda *args, name=name: calls.append((name, args)) for name in 'ab']
    model = train_tiny(tmp_path / 'new', callbacks, end_step=step('1it'))
    assert [name for name, _ in calls] == ['a', 'b', 'a', 'b']
    location, at, seen_model, optimizer, logger = calls[0][1]
    assert location == str(tmp_path / 'new') and at == step('0it') and seen_model is model
    assert isinstance(optimizer, torch.optim.SGD) and str(logger) == ''
    assert (tmp_path / 'new').is_dir()


@pytest.mark.parametrize('start, end, steps', [
    ('0it', '1it', [(0, 0), (0, 1)]), ('3it', '1ep1it', [(0, 3), (0, 4), (1, 0), (1, 1)]), ('1ep', '1ep', []),
    ('1ep1it', '1ep', []), ('4it', '1ep', [(0, 4), (1, 0)])])
def test_start_and_end(tmp_path, start, end, steps):
    recorder = Recorder()
    train_tiny(tmp_path, [recorder], start_step=step(start), end_step=step(end))
    assert recorder.steps == steps


def test_nothing_to_do_leaves_the_model_alone(tmp_path):
    model = build_model(tiny_desc())
    before = state_of(model)
    train_tiny(tmp_path, model=model, start_step=step('2ep'))
    assert same_state(state_of(model), before)


def test_updates_are_those_of_a_hand_written_loop(tmp_path):
    """An oracle: SGD with momentum, weight decay and a milestone, written out."""

    desc = tiny_desc(lr=0.01, weight_decay=0.1, milestone_steps='3it', gamma=0.5, data_order_seed=7,
                     training_steps='1ep2it')
    trained = train_tiny(tmp_path, desc=desc)

    model = build_model(desc)
    loader = datasets.get(desc.dataset_hparams)
    torch.manual_seed(1)
    momentum = [torch.zeros_like(parameter) for parameter in model.parameters()]
    iteration = 0
    for epoch in range(2):
        loader.shuffle(7 + epoch)
        for images, labels in loader:
            if iteration == 7:
                break
            model.zero_grad()
            model.train()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            rate = 0.01 * 0.5 ** (iteration >= 3)
            with torch.no_grad():
                for parameter, velocity in zip(model.parameters(), momentum):
                    velocity.mul_(0.9).add_(parameter.grad + 0.1 * parameter)
                    parameter.sub_(rate * velocity)
            iteration += 1
    for name, tensor in trained.state_dict().items():
        assert torch.allclose(tensor.double(), model.state_dict()[name].double(), atol=1e-5), name


def test_learning_rate_follows_the_schedule_from_any_start(tmp_path):
    desc = tiny_desc(warmup_steps='4it', milestone_steps='1ep', gamma=0.5)
    whole, part = Recorder(), Recorder()
    train_tiny(tmp_path / 'a', [whole], desc=desc)
    train_tiny(tmp_path / 'b', [part], desc=desc, start_step=step('1ep1it'))
    assert whole.rates == pytest.approx([0, 0.025, 0.05, 0.075, 0.1] + [0.05] * 6)
    assert part.rates == whole.rates[6:]


# ---- data order

@pytest.mark.parametrize('seed, start, shuffles', [
    (None, '0it', [None, None, None]), (4, '0it', [4, 5, 6]), (0, '0it', [0, 1, 2]), (4, '1ep2it', [5, 6])])
def test_each_epoch_is_shuffled_with_its_own_seed(tmp_path, seed, start, shuffles):
    """Reproduced: also epoch 2, of which only the first batch is fetched and none is trained on."""

    desc = tiny_desc(data_order_seed=seed)
    loader = RecordingLoader(datasets.get(desc.dataset_hparams))
    train(desc.training_hparams, build_model(desc), loader, str(tmp_path), [], start_step=step(start))
    assert loader.shuffles == shuffles
    assert len(loader.served) == (len(shuffles) - 1) * PER_EPOCH + 1


def test_batches_before_the_start_are_fetched_but_not_trained_on(tmp_path):
    """Reproduced: they consume their augmentation draws."""

    desc = tiny_desc(data_order_seed=4)
    recorder = Recorder()
    loader = RecordingLoader(datasets.get(desc.dataset_hparams))
    train(desc.training_hparams, build_model(desc), loader, str(tmp_path), [recorder], start_step=step('3it'),
          end_step=step('4it'))
    assert len(loader.served) == 5 and recorder.steps == [(0, 3), (0, 4)]


# ---- resuming

class Killed(Exception):
    pass


def stop_at(where):
    def callback(output_location, step, model, optimizer, logger):
        if step == where:
            raise Killed
    return callback


def save_every_epoch(loader):
    def callback(output_location, step, model, optimizer, logger):
        if step.it == 0:
            save_checkpoint_callback(output_location, step, model, optimizer, logger,
                                     rng_state=loader.epoch_start_rng_state)
    return callback


def resumable(tmp_path, desc, killed_at=None, resume_with_seed=99):
    """Trains with checkpoints, perhaps killed once and gone on with, in a process with other random state."""

    model, loader = build_model(desc), datasets.get(desc.dataset_hparams)
    checkpoints = save_every_epoch(loader)
    torch.manual_seed(1)
    if killed_at is not None:
        with pytest.raises(Killed):
            train(
                desc.training_hparams, model, loader, str(tmp_path), [checkpoints, stop_at(step(killed_at))]
            )
        model, loader = build_model(desc, seed=5), datasets.get(desc.dataset_hparams)
        checkpoints = save_every_epoch(loader)
        torch.manual_seed(resume_with_seed)
    train(desc.training_hparams, model, loader, str(tmp_path), [checkpoints])
    return state_of(model), torch.rand(3)


@pytest.mark.parametrize(
    'options',
    [
        dict(),
        dict(data_order_seed=3),
        dict(optimizer_name='adam', lr=0.001, momentum=0.0),
        dict(weight_decay=0.01),
        dict(milestone_steps='1ep', gamma=0.1, warmup_steps='3it'),
        dict(amp='bf16'),
        dict(channels_last=True),
    ],
    ids=str,
)
@pytest.mark.parametrize('killed_at', ['2it', '1ep', '1ep3it'])
def test_resumed_training_ends_with_the_same_bits(tmp_path, options, killed_at):
    desc = tiny_desc(**options)
    state, draws = resumable(tmp_path / 'whole', desc)
    resumed_state, resumed_draws = resumable(tmp_path / 'resumed', desc, killed_at)
    assert same_state(resumed_state, state)
    assert torch.equal(resumed_draws, draws), 'the generator goes on as if nothing had happened'


def test_the_resumed_run_did_restart_from_a_different_state(tmp_path):
    """The comparison above can fail: without the checkpoint another model comes out."""

    desc = tiny_desc()
    state, _ = resumable(tmp_path / 'whole', desc)
    model = build_model(desc, seed=5)
    torch.manual_seed(99)
    train(desc.training_hparams, model, datasets.get(desc.dataset_hparams), str(tmp_path / 'other'))
    assert not same_state(state_of(model), state)


def test_intermediate_checkpoints_differ_from_the_last(tmp_path):
    with pytest.raises(Killed):
        train_tiny(
            tmp_path, [save_every_epoch(datasets.get(tiny_desc().dataset_hparams)), stop_at(step('1ep1it'))]
        )
    middle = load(tmp_path / 'checkpoint.pth')
    train_tiny(tmp_path, [save_every_epoch(datasets.get(tiny_desc().dataset_hparams))])
    last = load(tmp_path / 'checkpoint.pth')
    assert (middle['ep'], last['ep']) == (1, 2)
    assert not same_state(middle['model_state_dict'], last['model_state_dict'])


def as_made_by_openlth(path):
    """Rewrites a checkpoint as OpenLTH would have written it: numpy numbers, no generator state."""

    checkpoint = load(path)
    checkpoint = {
        key: checkpoint[key] for key in ('ep', 'it', 'model_state_dict', 'optimizer_state_dict', 'logger')
    }
    checkpoint['ep'], checkpoint['it'] = np.int64(checkpoint['ep']), np.int64(checkpoint['it'])
    group = checkpoint['optimizer_state_dict']['param_groups'][0]
    group['lr'] = np.float64(group['lr'])
    torch.save(checkpoint, path)


def test_a_run_begun_by_openlth_is_finished_with_the_same_bits(tmp_path):
    """With a data order seed and no augmentation nothing random is left."""

    desc = tiny_desc(data_order_seed=3, milestone_steps='1ep', gamma=0.5, dataset=dict(do_not_augment=True))
    state, _ = resumable(tmp_path / 'whole', desc)
    model, loader = build_model(desc), datasets.get(desc.dataset_hparams)
    with pytest.raises(Killed):
        train(desc.training_hparams, model, loader, str(tmp_path / 'begun'),
              [save_every_epoch(loader), stop_at(step('1ep2it'))])
    as_made_by_openlth(tmp_path / 'begun' / 'checkpoint.pth')
    model = build_model(desc, seed=5)
    train(desc.training_hparams, model, loader, str(tmp_path / 'begun'), [save_every_epoch(loader)])
    assert same_state(state_of(model), state)
    group = load(tmp_path / 'begun' / 'checkpoint.pth')['optimizer_state_dict']['param_groups'][0]
    assert type(group['lr']) is float, 'plain numbers from then on'


# ---- faster training

@pytest.mark.parametrize('options', [dict(amp='bf16'), dict(amp='fp16'), dict(apex_fp16=True)])
def test_mixed_precision_learns_like_fp32_but_not_with_its_bits(tmp_path, options):
    states = [state_of(train_tiny(tmp_path / str(n), desc=tiny_desc(data_order_seed=1, lr=0.01, **chosen)))
              for n, chosen in enumerate([{}, options])]
    assert not same_state(*states)
    assert all(
        tensor.dtype != torch.bfloat16 and tensor.dtype != torch.float16 for tensor in states[1].values()
    )
    assert torch.allclose(states[0]['fc.weight'], states[1]['fc.weight'], atol=0.05)


def test_channels_last_changes_nothing_but_rounding(tmp_path):
    states = [
        state_of(train_tiny(tmp_path / str(chosen), desc=tiny_desc(data_order_seed=1, channels_last=chosen)))
        for chosen in (False, True)
    ]
    assert all(
        torch.allclose(states[0][name].float(), states[1][name].float(), atol=1e-3) for name in states[0]
    )


@pytest.mark.parametrize(
    'options',
    [
        dict(amp='fp8'),
        dict(apex_fp16=True, amp='bf16'),
        dict(training_steps='oops'),
        dict(lr=-1.0),
        dict(lr=float('nan')),
        dict(momentum=-0.5),
        dict(weight_decay=-1.0),
        dict(gamma=0.1),
        dict(optimizer_name='x'),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options):
    with pytest.raises(ValueError):
        train_tiny(tmp_path, desc=tiny_desc(**options))


# ---- standard_train

def standard(tmp_path, desc, seed=0, **options):
    model = build_model(desc, seed)
    standard_train(
        model, str(tmp_path), desc.dataset_hparams, desc.training_hparams, verbose=False, **options
    )
    return model


def test_files_of_a_standard_run(tmp_path):
    standard(tmp_path, tiny_desc())
    assert artefacts(tmp_path) == {'model_ep0_it0.pth', 'model_ep2_it0.pth', 'checkpoint.pth', 'logger'}


def test_a_finished_run_is_left_alone(tmp_path):
    desc = tiny_desc()
    standard(tmp_path, desc)
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in list_files(tmp_path)}
    model = standard(tmp_path, desc, seed=3)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in list_files(tmp_path)} == before
    assert same_state(state_of(model), state_of(build_model(desc, seed=3))), (
        'the model given is not trained again'
    )


@pytest.mark.parametrize('missing', ['logger', 'model_ep2_it0.pth'])
def test_a_run_without_its_last_files_is_finished(tmp_path, missing):
    desc = tiny_desc()
    standard(tmp_path, desc)
    content = load(tmp_path / missing) if missing.endswith('pth') else (tmp_path / missing).read_text()
    (tmp_path / missing).unlink()
    standard(tmp_path, desc)
    if missing.endswith('pth'):
        assert same_state(load(tmp_path / missing), content)
    else:
        assert (tmp_path / missing).read_text() == content


def test_a_model_named_by_numpy_integers_has_a_plain_name(tmp_path):
    desc = tiny_desc()
    build_model(desc).save(str(tmp_path), Step.from_epoch(np.int64(1), np.int64(2), np.int64(5)))
    assert (tmp_path / 'model_ep1_it2.pth').is_file()
