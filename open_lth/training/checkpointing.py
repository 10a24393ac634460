"""Where training stands, so that a run killed at any moment goes on and ends with the same bits."""

import torch

from open_lth.foundations import paths, rng
from open_lth.foundations.errors import CorruptFileError
from open_lth.foundations.step import Step
from open_lth.models.registry import load_state_dict
from open_lth.platforms.platform import get_platform
from open_lth.training.metric_logger import MetricLogger


def save_checkpoint_callback(output_location, step, model, optimizer, logger, rng_state=None):
    """Writes the checkpoint (primary process only).

    `rng_state` is the generators' state from which the epoch begun at `step` can be served again; the current one
    by default. It and `grad_scaler` (with fp16) are ours; OpenLTH ignores them.
    """
    platform = get_platform()
    if not platform.is_primary_process:
        return
    platform.makedirs(output_location)
    checkpoint = {
        'ep': step.ep,
        'it': step.it,
        'model_state_dict': model.state_dict(),
        'optimizer_state_dict': optimizer.state_dict(),
        'logger': str(logger),
        'rng_state': rng_state or rng.get_rng_state(),
    }
    if hasattr(optimizer, 'grad_scaler'):
        checkpoint['grad_scaler'] = optimizer.grad_scaler.state_dict()
    platform.save_model(checkpoint, paths.checkpoint(output_location))


def restore_checkpoint(output_location, model, optimizer, iterations_per_epoch):
    """(step, logger) of the checkpoint, restored into model, optimizer and generators; (None, None) without one.

    Reads OpenLTH's checkpoints too. Raises CorruptFileError when the file is damaged or another model's.
    """
    platform = get_platform()
    path = paths.checkpoint(output_location)
    if not platform.exists(path):
        return None, None
    checkpoint = platform.load_model(path, map_location=torch.device('cpu'))
    try:
        state_dict = checkpoint['model_state_dict']
        if isinstance(model, torch.nn.parallel.DistributedDataParallel | torch.nn.DataParallel):
            state_dict = {f'module.{name.removeprefix("module.")}': value for name, value in state_dict.items()}
        else:
            state_dict = {name.removeprefix('module.'): value for name, value in state_dict.items()}
        load_state_dict(model, state_dict, path)
        optimizer.load_state_dict(checkpoint['optimizer_state_dict'])
        step = Step.from_epoch(int(checkpoint['ep']), int(checkpoint['it']), iterations_per_epoch)
        logger = MetricLogger.create_from_string(checkpoint['logger'])
        if hasattr(optimizer, 'grad_scaler') and checkpoint.get('grad_scaler'):
            optimizer.grad_scaler.load_state_dict(checkpoint['grad_scaler'])
        if checkpoint.get('rng_state'):
            rng.set_rng_state(checkpoint['rng_state'])
    except CorruptFileError:
        raise
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        raise CorruptFileError(f'{path} is not a checkpoint of this run ({e}). Restore it, or delete it to start '
                               'this run again.') from e
    return step, logger


def save_rng_state(output_location, stage):
    """Records the generators' state after a finished stage. To be called before the file that marks it finished."""
    platform = get_platform()
    if platform.is_primary_process:
        platform.makedirs(output_location)
        platform.save_model(rng.get_rng_state(), paths.rng_state(output_location, stage))


def restore_rng_state(output_location, stage):
    """Leaves the generators as the finished stage left them. A run made by OpenLTH has no record: no change then."""
    platform = get_platform()
    path = paths.rng_state(output_location, stage)
    if platform.exists(path):
        state = platform.load_model(path, map_location=torch.device('cpu'))
        try:
            rng.set_rng_state(state)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
            raise CorruptFileError(f'{path} is not a state of the random generators ({e}). Restore it.') from e
