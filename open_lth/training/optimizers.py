"""Optimisers and learning-rate schedules."""

import bisect
import warnings

import torch

from open_lth.foundations.errors import UserError
from open_lth.foundations.step import Step


def get_optimizer(training_hparams, model):
    """SGD or Adam over all parameters; frozen ones have no gradient and stay. UserError for another name."""
    _check_name(training_hparams)
    if training_hparams.optimizer_name == 'sgd':
        nesterov = training_hparams.nesterov_momentum
        return torch.optim.SGD(
            model.parameters(),
            lr=training_hparams.lr,
            # OpenLTH compatibility: with both momenta given, the value of the plain one and Nesterov's update.
            momentum=training_hparams.momentum or nesterov or 0,
            weight_decay=training_hparams.weight_decay or 0,
            nesterov=nesterov is not None and nesterov > 0)
    return torch.optim.Adam(model.parameters(), lr=training_hparams.lr,
                            weight_decay=training_hparams.weight_decay or 0)


def get_lr_multiplier(training_hparams, iterations_per_epoch):
    """A function: iteration -> factor of the learning rate (gamma at each milestone passed, linear warm-up)."""
    # OpenLTH compatibility: milestones are searched in the order written, sorted or not.
    milestones = [Step.from_str(text, iterations_per_epoch).iteration
                  for text in (training_hparams.milestone_steps or '').split(',') if text]
    if bool(training_hparams.gamma) != bool(training_hparams.milestone_steps):
        raise UserError('--gamma and --milestone_steps must be given together')
    warmup = Step.from_str(training_hparams.warmup_steps, iterations_per_epoch).iteration \
        if training_hparams.warmup_steps else 0

    def multiplier(iteration):
        factor = 1.0
        if milestones:
            factor *= training_hparams.gamma ** bisect.bisect(milestones, iteration)
        if warmup:
            factor *= min(1.0, iteration / warmup)
        return factor

    return multiplier


def get_lr_schedule(training_hparams, optimizer, iterations_per_epoch):
    """torch's LambdaLR, to be stepped once per iteration."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lr_lambda=get_lr_multiplier(training_hparams, iterations_per_epoch))


def advance(lr_schedule, iterations):
    """Steps the schedule without an optimiser step before it, which torch would warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        for _ in range(iterations):
            lr_schedule.step()


def validate(training_hparams, iterations_per_epoch):
    """Raises UserError for a hyperparameter that cannot be used; needs neither model nor data."""
    _check_name(training_hparams)
    Step.from_str(training_hparams.training_steps, iterations_per_epoch)
    get_lr_multiplier(training_hparams, iterations_per_epoch)
    if training_hparams.amp not in (None, 'bf16', 'fp16'):
        raise UserError(f'no such --amp: {training_hparams.amp}. Known: bf16, fp16')
    if training_hparams.apex_fp16 and training_hparams.amp not in (None, 'fp16'):
        raise UserError(f'--apex_fp16 and --amp={training_hparams.amp} contradict each other')
    if not 0 <= (training_hparams.data_order_seed or 0) < 2**62:
        raise UserError(f'--data_order_seed must be in [0, 2^62), not {training_hparams.data_order_seed}')
    for name in ('lr', 'momentum', 'nesterov_momentum', 'weight_decay'):
        value = getattr(training_hparams, name)
        if value is not None and not 0 <= value < float('inf'):
            raise UserError(f'--{name} must be a number >= 0, not {value}')


def _check_name(training_hparams):
    if training_hparams.optimizer_name not in ('sgd', 'adam'):
        raise UserError(f'no such optimizer: {training_hparams.optimizer_name}. Known: sgd, adam')
