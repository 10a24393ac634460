import numpy as np
import pytest
import torch

from open_lth.foundations.hparams import TrainingHparams
from open_lth.foundations.step import Step
from open_lth.models.base import DataParallel
from open_lth.testing.toy_model import InnerProductModel
from open_lth.training.checkpointing import restore_checkpoint, save_checkpoint_callback
from open_lth.training.metric_logger import MetricLogger
from open_lth.training.optimizers import get_optimizer
from tests.helpers import load

pytestmark = pytest.mark.usefixtures('local_platform')
KEYS = ['ep', 'it', 'model_state_dict', 'optimizer_state_dict', 'logger']


def fresh(wrap=lambda model: model):
    model = InnerProductModel(10)
    return wrap(model), get_optimizer(TrainingHparams('sgd', 0.1, '10ep', momentum=0.9), model)


@pytest.fixture
def trained():
    """(model, optimizer, logger) after one update, which gives the optimizer a momentum."""

    model, optimizer = fresh()
    model.loss_criterion(model(torch.ones(1, 10)), torch.zeros(1)).backward()
    optimizer.step()
    logger = MetricLogger()
    logger.add('test_loss', Step(3, 20), 0.5)
    return model, optimizer, logger


def save(tmp_path, trained, iteration=47):
    save_checkpoint_callback(str(tmp_path), Step(iteration, 20), *trained)
    return tmp_path / 'checkpoint.pth'


def test_content(tmp_path, trained):
    checkpoint = load(save(tmp_path, trained))
    assert list(checkpoint)[:5] == KEYS
    assert (checkpoint['ep'], checkpoint['it'], checkpoint['logger']) == (2, 7, 'test_loss,3,0.5')


def test_everything_comes_back(tmp_path, trained):
    save(tmp_path, trained)
    model, optimizer = fresh()
    step, logger = restore_checkpoint(str(tmp_path), model, optimizer, 20)
    assert step == Step(47, 20) and str(logger) == 'test_loss,3,0.5'
    assert torch.equal(model.layer.weight, trained[0].layer.weight)
    momentum = [
        group.state[group.param_groups[0]['params'][0]]['momentum_buffer']
        for group in (optimizer, trained[1])
    ]
    assert torch.equal(*momentum)


def test_no_checkpoint_is_no_step(tmp_path):
    assert restore_checkpoint(str(tmp_path), *fresh(), 20) == (None, None)


def test_generators_go_on_where_they_were(tmp_path, trained):
    torch.manual_seed(3)
    save(tmp_path, trained)
    expected = torch.rand(2)
    torch.manual_seed(4)
    restore_checkpoint(str(tmp_path), *fresh(), 20)
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize('save_parallel', [False, True])
@pytest.mark.parametrize('load_parallel', [False, True])
def test_parallel_prefix_is_added_or_stripped(tmp_path, trained, save_parallel, load_parallel):
    model, optimizer, logger = trained
    save(tmp_path, (DataParallel(model) if save_parallel else model, optimizer, logger))
    restored, new_optimizer = fresh(DataParallel if load_parallel else lambda inner: inner)
    restore_checkpoint(str(tmp_path), restored, new_optimizer, 20)
    assert torch.equal(next(restored.parameters()), model.layer.weight)


def test_checkpoint_made_by_openlth(tmp_path, trained):
    """Its ep and it are numpy integers, its learning rates numpy floats; it has no generator state."""

    model, optimizer, logger = trained
    state = optimizer.state_dict()
    state['param_groups'][0]['lr'] = np.float64(0.05)
    torch.save({'ep': np.int64(2), 'it': np.int64(7), 'model_state_dict': model.state_dict(),
                'optimizer_state_dict': state, 'logger': str(logger)}, tmp_path / 'checkpoint.pth')
    restored, new_optimizer = fresh()
    step, _ = restore_checkpoint(str(tmp_path), restored, new_optimizer, 20)
    assert (step.ep, step.it) == (2, 7) and type(step.ep) is int
    assert torch.equal(restored.layer.weight, model.layer.weight)
    assert new_optimizer.param_groups[0]['lr'] == 0.05


class RunsCode:
    """Unpickled by a careless reader, it would write a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_pickled_objects_are_never_run(tmp_path):
    torch.save({'ep': RunsCode(tmp_path / 'written')}, tmp_path / 'checkpoint.pth')
    with pytest.raises(ValueError, match='checkpoint.pth'):
        restore_checkpoint(str(tmp_path), *fresh(), 20)
    assert not (tmp_path / 'written').exists()


def edited(change):
    """A damage: the checkpoint with one change."""

    def damage(path):
        checkpoint = load(path)
        change(checkpoint)
        torch.save(checkpoint, path)
    return damage


def truncated(size):
    return lambda path: path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize(
    'damage',
    [
        truncated(0),
        truncated(1),
        truncated(100),
        truncated(-1),
        truncated(-200),
        lambda path: path.write_bytes(b'rubbish'),
        lambda path: torch.save([1, 2], path),
        edited(lambda checkpoint: checkpoint.pop('optimizer_state_dict')),
        edited(lambda checkpoint: checkpoint.update(ep=-1)),
        edited(lambda checkpoint: checkpoint.update(ep='x')),
        edited(lambda checkpoint: checkpoint.update(logger='rubbish')),
        edited(lambda checkpoint: checkpoint.update(optimizer_state_dict={})),
        edited(lambda checkpoint: checkpoint.update(model_state_dict={'layer.weight': torch.ones(3)})),
        edited(lambda checkpoint: checkpoint.update(model_state_dict={'other': torch.ones(10)})),
        edited(lambda checkpoint: checkpoint.update(rng_state={'torch': torch.zeros(3, dtype=torch.uint8)})),
        edited(lambda checkpoint: checkpoint.update(model_state_dict=None)),
        edited(lambda checkpoint: checkpoint.clear()),
    ],
)
def test_damaged_checkpoint_is_named_and_kept(tmp_path, trained, damage):
    path = save(tmp_path, trained)
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match='checkpoint.pth'):
        restore_checkpoint(str(tmp_path), *fresh(), 20)
    assert path.read_bytes() == before
