"""Learning rates at the golden iterations, reached step by step and by skipping ahead."""

import re
import warnings

import pytest
import torch

from open_lth.foundations.hparams import TrainingHparams
from open_lth.training.optimizers import get_lr_schedule, get_optimizer
from tests.helpers import load_golden

GOLDEN = load_golden('lr_schedule')
LINEAR = torch.nn.Linear(2, 2)


def schedule_of(hparams, iterations_per_epoch=10):
    optimizer = get_optimizer(hparams, LINEAR)
    return optimizer, get_lr_schedule(hparams, optimizer, iterations_per_epoch)


def hparams_of(text):
    """The bundle whose canonical name is given."""

    items = re.findall(r"(\w+)=('[^']*'|[^,)]+)", text.removeprefix('Hparams('))
    values = {name: value.strip("'") if value.startswith("'") else float(value) for name, value in items}
    hparams = TrainingHparams(**values)
    assert str(hparams) == text
    return hparams


@pytest.mark.parametrize('case', GOLDEN['schedules'], ids=lambda case: case['case'])
def test_learning_rates(case):
    wanted = {int(iteration): lr for iteration, lr in case['lr_at_iteration'].items()}
    optimizer, schedule = schedule_of(hparams_of(case['hparams']), case['iterations_per_epoch'])
    for iteration in range(max(wanted) + 1):
        if iteration in wanted:
            assert optimizer.param_groups[0]['lr'] == pytest.approx(wanted[iteration], rel=1e-12, abs=1e-300)
        if iteration < max(wanted):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                schedule.step()


@pytest.mark.parametrize('error, options', {
    'gamma without milestones': dict(gamma=0.1),
    'milestones without gamma': dict(milestone_steps='1ep'),
    'gamma=0 with milestones': dict(milestone_steps='1ep', gamma=0.0),
    'bad step': dict(milestone_steps='1ep,oops', gamma=0.1)}.items())
def test_inconsistent_options_are_refused(error, options):
    assert GOLDEN['errors'][error] == 'ValueError'
    with pytest.raises(ValueError):
        schedule_of(TrainingHparams('sgd', 0.1, '10ep', **options))


@pytest.mark.parametrize('warmup', ['0it', '0ep'])
def test_warmup_of_no_steps_is_no_warmup(warmup):
    """Fixed: OpenLTH divides by zero."""

    assert GOLDEN['errors'][f'warmup {warmup}'] == 'ZeroDivisionError'
    optimizer, schedule = schedule_of(TrainingHparams('sgd', 0.1, '10ep', warmup_steps=warmup))
    assert optimizer.param_groups[0]['lr'] == 0.1
