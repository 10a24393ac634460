"""Hyperparameters as typed data: each dataclass field is a command-line flag and a part of the run's name."""

import argparse
import copy
from dataclasses import MISSING, dataclass, fields

from open_lth.foundations.errors import UserError

_VALUE_TYPES = (str, float, int)


@dataclass
class Hparams:
    """A bundle of hyperparameters.

    Subclasses are dataclasses that also hold `_name` and `_description` (title and text of the help group) and, for
    a field `f`, optionally `_f` (its help). Defaults are class attributes: deleting an instance attribute shows them.
    """

    def __post_init__(self):
        for attribute in ('_name', '_description'):
            if not hasattr(self, attribute):
                raise ValueError(f'{type(self).__name__} must have a value for {attribute}')

    @classmethod
    def add_args(cls, parser, defaults=None, prefix=None, name=None, description=None, create_group=True):
        """Adds one flag per field to `parser`, with the values of `defaults` (an instance of cls) as defaults."""
        if defaults is not None and not isinstance(defaults, cls):
            raise ValueError(f'defaults must be of type {cls.__name__}, not {type(defaults).__name__}')
        if create_group:
            parser = parser.add_argument_group(name or cls._name, description or cls._description)
        for field in _public_fields(cls):
            _add_flag(cls, parser, field, defaults, prefix)

    @classmethod
    def create_from_args(cls, args, prefix=None):
        """Reads the fields from an argparse namespace; ValueError when one is missing."""
        values = {}
        for field in _public_fields(cls):
            flag = _flag(field, prefix)
            if isinstance(field.type, type) and issubclass(field.type, Hparams):
                values[field.name] = field.type.create_from_args(args, prefix=flag)
            elif not hasattr(args, flag):
                raise ValueError(f'missing argument: {flag}')
            else:
                values[field.name] = getattr(args, flag)
        return cls(**values)

    @property
    def display(self):
        """The bundle for people. OpenLTH compatibility: optional fields with a falsy value are not shown."""
        shown = [f'    * {field.name} => {getattr(self, field.name)}' for field in _public_fields(self)
                 if field.default is MISSING or getattr(self, field.name)]
        return '\n'.join([self._name] + shown)

    def __str__(self):
        """The canonical name, which is hashed: sorted fields that differ from their default."""
        parts = [f'{field.name}={_canonical(getattr(self, field.name))}'
                 for field in sorted(_public_fields(self), key=lambda f: f.name)
                 if field.default is MISSING or getattr(self, field.name) != field.default]
        return f'Hparams({", ".join(parts)})'


def _public_fields(hparams):
    return [field for field in fields(hparams) if not field.name.startswith('_')]


def _flag(field, prefix):
    return f'{prefix}_{field.name}' if prefix else field.name


def _canonical(value):
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, tuple):
        return f'Tuple({",".join(str(item) for item in value)})'
    return str(value)


def _add_flag(cls, parser, field, defaults, prefix):
    flag = _flag(field, prefix)
    help_text = getattr(cls, f'_{field.name}', '')
    if defaults is not None:
        default = copy.deepcopy(getattr(defaults, field.name))
    else:
        default = None if field.default is MISSING else copy.deepcopy(field.default)

    if field.type is bool:
        if field.default is not False or (defaults is not None and default is not False):
            raise ValueError(f'boolean hyperparameters must default to False: {field.name}')
        parser.add_argument(f'--{flag}', action='store_true', help=f'(optional) {help_text}')
    elif isinstance(field.type, type) and issubclass(field.type, Hparams):
        field.type.add_args(parser, defaults=default, prefix=flag, create_group=False)
    elif field.type in _VALUE_TYPES:
        required = field.default is MISSING and not default
        kind = '(required: %(type)s)' if required else f'(default: {default})' if default else '(optional: %(type)s)'
        parser.add_argument(f'--{flag}', type=field.type, default=default, required=required,
                            help=f'{kind} {help_text}')
    else:
        raise ValueError(f'hyperparameter {field.name} has type {field.type}; '
                         'only bool, str, float, int and Hparams become flags')


def check_fraction(hparams, name, below_one=False):
    """Raises UserError unless the field is None or in [0, 1] (in [0, 1) with `below_one`)."""
    value = getattr(hparams, name)
    if value is not None and not (0 <= value < 1 or (value == 1 and not below_one)):
        raise UserError(f'--{name} must be in [0, 1{")" if below_one else "]"}, not {value}')


@dataclass
class DatasetHparams(Hparams):
    dataset_name: str
    batch_size: int
    do_not_augment: bool = False
    transformation_seed: int = None
    subsample_fraction: float = None
    random_labels_fraction: float = None
    unsupervised_labels: str = None
    blur_factor: int = None

    _name: str = 'Dataset Hyperparameters'
    _description: str = 'Hyperparameters that select the data set, data augmentation, and other transformations.'
    _dataset_name: str = 'The name of the data set, for example cifar10.'
    _batch_size: str = 'The number of examples in a batch, for training and for testing.'
    _do_not_augment: str = 'Switches data augmentation off for the training set.'
    _transformation_seed: str = 'The seed of the random transformations below (labels, subsample, rotation).'
    _subsample_fraction: str = 'Trains on a random subset of this fraction of the training set. Note: with ' \
        'random_labels_fraction the subset is drawn among the examples with random labels first.'
    _random_labels_fraction: str = 'Gives this fraction of the training examples random labels.'
    _unsupervised_labels: str = "Replaces the labels by a pretext task's. Only 'rotation' exists."
    _blur_factor: str = 'Blurs the training images by shrinking and enlarging them by this factor.'


@dataclass
class ModelHparams(Hparams):
    model_name: str
    model_init: str
    batchnorm_init: str
    batchnorm_frozen: bool = False
    output_frozen: bool = False
    others_frozen: bool = False
    others_frozen_exceptions: str = None

    _name: str = 'Model Hyperparameters'
    _description: str = 'Hyperparameters that select the model, its initialization, and which weights are frozen.'
    _model_name: str = 'The name of the model, for example cifar_vgg_16.'
    _model_init: str = 'The initializer of the convolutional and linear weights, for example kaiming_normal.'
    _batchnorm_init: str = 'The initializer of the batch-norm parameters, for example uniform.'
    _batchnorm_frozen: str = 'Batch-norm parameters stay at their initial values.'
    _output_frozen: str = 'The output layer stays at its initial values.'
    _others_frozen: str = 'All other parameters stay at their initial values.'
    _others_frozen_exceptions: str = 'Comma-separated parameter names that others_frozen leaves trainable.'


@dataclass
class TrainingHparams(Hparams):
    optimizer_name: str
    lr: float
    training_steps: str
    data_order_seed: int = None
    momentum: float = 0.0
    nesterov_momentum: float = 0.0
    milestone_steps: str = None
    gamma: float = None
    warmup_steps: str = None
    weight_decay: float = None
    apex_fp16: bool = False
    amp: str = None
    channels_last: bool = False
    compile: bool = False

    _name: str = 'Training Hyperparameters'
    _description: str = 'Hyperparameters that determine how the model is trained.'
    _optimizer_name: str = 'The optimizer: sgd or adam.'
    _lr: str = 'The learning rate.'
    _training_steps: str = 'How long to train, as a step, for example 160ep, 64000it or 10ep500it.'
    _data_order_seed: str = 'The seed of the data order; epoch e uses this seed + e. Without it the order is random.'
    _momentum: str = 'The momentum of sgd.'
    _nesterov_momentum: str = 'The Nesterov momentum of sgd.'
    _milestone_steps: str = 'Comma-separated steps at which the learning rate is multiplied by gamma.'
    _gamma: str = 'The factor at each milestone step.'
    _warmup_steps: str = 'The step until which the learning rate rises linearly from 0.'
    _weight_decay: str = 'The L2 penalty on all weights.'
    _apex_fp16: str = 'Trains with fp16 automatic mixed precision (native; the apex library is not needed).'
    _amp: str = 'Trains with automatic mixed precision: bf16 or fp16. Evaluation stays in fp32.'
    _channels_last: str = 'Trains in the channels-last memory format, which is faster for convolutions.'
    _compile: str = 'Trains through torch.compile.'


@dataclass
class PruningHparams(Hparams):
    pruning_strategy: str

    _name: str = 'Pruning Hyperparameters'
    _description: str = 'Hyperparameters that determine how the model is pruned.'
    _pruning_strategy: str = 'The pruning strategy, for example sparse_global.'


def make_parser(**kwargs):
    """An argparse parser in which a later definition of a flag replaces the earlier one."""
    return argparse.ArgumentParser(conflict_handler='resolve', **kwargs)
