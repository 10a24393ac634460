"""What defines a lottery ticket experiment."""

import copy
from dataclasses import dataclass

from open_lth.cli import arg_utils, shared_args
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.desc import Desc, join_run_path
from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import DatasetHparams, ModelHparams, PruningHparams, TrainingHparams, check_fraction
from open_lth.foundations.step import Step
from open_lth.pruning import registry as pruning_registry
from open_lth.training import optimizers
from open_lth.training.desc import TrainingDesc

_ZERO_STEPS = '0ep'


@dataclass
class LotteryDesc(Desc):
    model_hparams: ModelHparams
    dataset_hparams: DatasetHparams
    training_hparams: TrainingHparams
    pruning_hparams: PruningHparams
    pretrain_dataset_hparams: DatasetHparams = None
    pretrain_training_hparams: TrainingHparams = None

    @staticmethod
    def name_prefix():
        return 'lottery'

    @staticmethod
    def add_args(parser, defaults=None):
        defaults = defaults or shared_args.maybe_get_default_hparams()
        pretrain = arg_utils.maybe_get_arg('pretrain', boolean_arg=True)
        if pretrain and arg_utils.maybe_get_arg('rewinding_steps'):
            raise UserError('--rewinding_steps and --pretrain cannot be given together')

        group = parser.add_argument_group('Rewinding/Pretraining Arguments',
                                          'Arguments that determine how the network is pre-trained')
        group.add_argument('--rewinding_steps', type=str,
                           help='(optional: str) The step to which each level is rewound, for example 500it.')
        group.add_argument('--pretrain', action='store_true',
                           help='(optional) Pre-trains with the pretrain_ hyperparameters.')
        TrainingDesc.add_args(parser, defaults)
        _pruning_hparams_class(defaults).add_args(parser, defaults=defaults.pruning_hparams if defaults else None)
        if pretrain:
            pretrain_training = copy.deepcopy(defaults.training_hparams) if defaults else None
            if pretrain_training:
                pretrain_training.training_steps = _ZERO_STEPS
            TrainingHparams.add_args(parser, defaults=pretrain_training, prefix='pretrain',
                                     name='Training Hyperparameters for Pretraining')
            DatasetHparams.add_args(parser, defaults=defaults.dataset_hparams if defaults else None,
                                    prefix='pretrain', name='Dataset Hyperparameters for Pretraining')

    @classmethod
    def create_from_args(cls, args):
        dataset_hparams = DatasetHparams.create_from_args(args)
        training_hparams = TrainingHparams.create_from_args(args)
        pruning_hparams = pruning_registry.get_pruning_hparams(args.pruning_strategy).create_from_args(args)

        pretrain_dataset_hparams = pretrain_training_hparams = None
        if args.pretrain and not Step.str_is_zero(args.pretrain_training_steps):
            pretrain_dataset_hparams = DatasetHparams.create_from_args(args, prefix='pretrain')
            pretrain_training_hparams = TrainingHparams.create_from_args(args, prefix='pretrain')
        elif args.rewinding_steps and not Step.str_is_zero(args.rewinding_steps):
            pretrain_dataset_hparams = copy.deepcopy(dataset_hparams)
            pretrain_training_hparams = copy.deepcopy(training_hparams)
            pretrain_training_hparams.training_steps = args.rewinding_steps
        for hparams in (pretrain_dataset_hparams, pretrain_training_hparams):
            if hparams:
                hparams._name = f'Pretraining {hparams._name}'

        desc = cls(ModelHparams.create_from_args(args), dataset_hparams, training_hparams, pruning_hparams,
                   pretrain_dataset_hparams, pretrain_training_hparams)
        desc.validate()
        return desc

    def validate(self):
        """Raises UserError for a hyperparameter that cannot be used; reads no data."""
        TrainingDesc(self.model_hparams, self.dataset_hparams, self.training_hparams).validate()
        if self.pretrain_training_hparams:
            optimizers.validate(self.pretrain_training_hparams,
                                datasets_registry.iterations_per_epoch(self.pretrain_dataset_hparams))
        if self.train_start_step > self.train_end_step:
            raise UserError(f'rewinding or pretraining to {self.pretrain_training_hparams.training_steps} goes beyond '
                            f'the end of training, {self.training_hparams.training_steps}')
        check_fraction(self.pruning_hparams, 'pruning_fraction', below_one=True)

    def str_to_step(self, text, pretrain=False):
        """The step of a text, in epochs of the main or of the pretraining data set."""
        dataset_hparams = self.pretrain_dataset_hparams if pretrain else self.dataset_hparams
        return Step.from_str(text, datasets_registry.iterations_per_epoch(dataset_hparams))

    @property
    def pretrain_end_step(self):
        return self.str_to_step(self.pretrain_training_hparams.training_steps, pretrain=True)

    @property
    def train_start_step(self):
        """Where each level starts. The text of the pretraining length is read on the main data set."""
        if self.pretrain_training_hparams:
            return self.str_to_step(self.pretrain_training_hparams.training_steps)
        return self.str_to_step('0it')

    @property
    def train_end_step(self):
        return self.str_to_step(self.training_hparams.training_steps)

    @property
    def pretrain_outputs(self):
        """OpenLTH compatibility: always None, so models have their family's default number of outputs."""
        return None

    @property
    def train_outputs(self):
        """OpenLTH compatibility: always None (see `pretrain_outputs`)."""
        return None

    def run_path(self, replicate, pruning_level, experiment='main'):
        """The folder of a level; ValueError unless the replicate is a positive int."""
        if not isinstance(replicate, int) or replicate <= 0:
            raise UserError(f'--replicate must be a positive integer, not {replicate}')
        return join_run_path(self.hashname, f'replicate_{replicate}', f'level_{pruning_level}', experiment)

    @property
    def display(self):
        bundles = [self.dataset_hparams, self.model_hparams, self.training_hparams, self.pruning_hparams,
                   self.pretrain_dataset_hparams, self.pretrain_training_hparams]
        return '\n'.join(bundle.display for bundle in bundles if bundle)


def _pruning_hparams_class(defaults):
    strategy = arg_utils.maybe_get_arg('pruning_strategy')
    if strategy is None and defaults is not None:
        strategy = defaults.pruning_hparams.pruning_strategy
    return PruningHparams if strategy is None else pruning_registry.get_pruning_hparams(strategy)
