"""Arguments that all commands share."""

from dataclasses import dataclass

from open_lth.cli import arg_utils
from open_lth.foundations.hparams import Hparams


@dataclass
class JobArgs(Hparams):
    """None of these is part of a run name."""

    replicate: int = 1
    default_hparams: str = None
    quiet: bool = False
    evaluate_only_at_end: bool = False
    weight_save_steps: str = ''

    _name: str = 'High-Level Arguments'
    _description: str = 'Arguments that determine how the job is run.'
    _replicate: str = 'The number of this replicate; runs that differ only in it have separate folders.'
    _default_hparams: str = 'Fills all hyperparameters with the defaults of this model, for example cifar_vgg_16.'
    _quiet: str = 'Prints nothing.'
    _evaluate_only_at_end: str = 'Evaluates on the test set only at the first and the last step.'
    _weight_save_steps: str = 'Comma-separated steps at which the weights are saved besides the first and the last.'


def maybe_get_default_hparams():
    """The LotteryDesc named by --default_hparams, or None; UserError for an unknown model."""
    name = arg_utils.maybe_get_arg('default_hparams')
    if not name:
        return None
    from open_lth.models import registry
    return registry.get_default_hparams(name)


def validate_save_steps(weight_save_steps, str_to_step):
    """Raises UserError unless --weight_save_steps is a comma-separated list of steps."""
    for text in weight_save_steps.split(','):
        if text:
            str_to_step(text)
