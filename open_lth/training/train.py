"""The training loop."""

from open_lth.datasets import registry as datasets_registry
from open_lth.foundations import paths
from open_lth.foundations.errors import UserError
from open_lth.foundations.runner import on_terminal
from open_lth.foundations.step import Step
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.training import checkpointing, optimizers, progress
from open_lth.training.metric_logger import MetricLogger
from open_lth.training.standard_callbacks import standard_callbacks
from open_lth.training.stepper import Stepper


def train(training_hparams, model, train_loader, output_location, callbacks=(), start_step=None, end_step=None,
          bar=None):
    """Trains `model` in place from `start_step` (or the checkpoint in `output_location`) to `end_step`.

    Each callback runs before every iteration and once more at the end step. `bar` is a progress.Bar.
    """
    platform = get_platform()
    if platform.is_primary_process:
        platform.makedirs(output_location)

    iterations_per_epoch = train_loader.iterations_per_epoch
    optimizers.validate(training_hparams, iterations_per_epoch)
    stepper = Stepper(training_hparams, model, iterations_per_epoch, platform.torch_device)
    resumed_step, logger = checkpointing.restore_checkpoint(output_location, stepper.model, stepper.optimizer,
                                                            iterations_per_epoch)
    start = resumed_step or start_step or Step.zero(iterations_per_epoch)
    end = end_step or Step.from_str(training_hparams.training_steps, iterations_per_epoch)
    logger = logger or MetricLogger()
    optimizers.advance(stepper.lr_schedule, start.iteration)
    # Killed after the end step's checkpoint and before its log and weights: its callbacks are still to be run.
    unfinished = resumed_step is not None and start == end and not is_finished(output_location, end)
    if end <= start and not unfinished:
        return

    bar = bar or progress.NoBar()
    bar.start(start, end)
    try:
        for ep in range(start.ep, end.ep + 1):
            seed = training_hparams.data_order_seed
            train_loader.shuffle(None if seed is None else seed + ep)
            for it, (examples, labels) in enumerate(train_loader):
                if ep == start.ep and it < start.it:
                    continue
                step = Step.from_epoch(ep, it, iterations_per_epoch)
                for callback in callbacks:
                    callback(output_location, step, stepper.model, stepper.optimizer, logger)
                if step == end:
                    return
                loss = stepper.step(examples, labels)
                bar.update(step, len(labels), loss, logger)
    finally:
        bar.close(logger)
    platform.barrier()


def is_finished(output_location, end_step):
    """Whether a training run in this place has written its last weights and its log."""
    return (models_registry.exists(output_location, end_step)
            and get_platform().exists(paths.logger(output_location)))


def standard_train(model, output_location, dataset_hparams, training_hparams, start_step=None, verbose=True,
                   evaluate_every_epoch=True, weight_save_steps='', title='training'):
    """Trains with the standard data and callbacks, unless that has been done already.

    Either way the random generators end as training left them. `title` heads the progress bar.
    """
    iterations_per_epoch = datasets_registry.iterations_per_epoch(dataset_hparams)
    end_step = Step.from_str(training_hparams.training_steps, iterations_per_epoch)
    if is_finished(output_location, end_step):
        checkpointing.restore_rng_state(output_location, 'train')
        return

    train_loader = datasets_registry.get(dataset_hparams, train=True)
    if train_loader.iterations_per_epoch != iterations_per_epoch:
        raise UserError(f'{dataset_hparams.dataset_name}: the training set on disk gives '
                        f'{train_loader.iterations_per_epoch} iterations per epoch, the complete one '
                        f'{iterations_per_epoch}. Files are missing or cut short; get the data set again. '
                        '(To train on a part of it, use --subsample_fraction.)')
    test_loader = datasets_registry.get(dataset_hparams, train=False)
    bar = progress.Bar(title) if verbose and on_terminal() else None
    callbacks = standard_callbacks(
        training_hparams, train_loader, test_loader, start_step=start_step, verbose=verbose and bar is None,
        evaluate_every_epoch=evaluate_every_epoch, weight_save_steps=weight_save_steps)
    train(training_hparams, model, train_loader, output_location, callbacks, start_step=start_step, bar=bar)
