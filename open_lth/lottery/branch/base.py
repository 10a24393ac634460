"""What a branch is: something done to finished levels of a lottery ticket experiment."""

import abc
import re

from open_lth.cli import shared_args
from open_lth.cli.branching import make_branch_hparams
from open_lth.foundations.errors import UserError
from open_lth.foundations.runner import Runner, print_frame
from open_lth.lottery.branch.desc import make_BranchDesc
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import load_mask_for
from open_lth.training.train import standard_train


class Branch(Runner):
    """Subclasses define `name`, `description` and `branch_function`, whose annotated parameters become flags."""

    def __init_subclass__(cls):
        cls.BranchHparams = make_branch_hparams(cls.branch_function)
        cls.BranchDesc = make_BranchDesc(cls.BranchHparams, cls.name())

    def __init__(self, replicate, levels, desc, verbose=False, level=None, evaluate_every_epoch=True,
                 weight_save_steps=''):
        self.replicate = replicate
        self.levels = levels
        self.desc = desc
        self.verbose = verbose
        self.level = level
        self.evaluate_every_epoch = evaluate_every_epoch
        self.weight_save_steps = weight_save_steps

    @staticmethod
    @abc.abstractmethod
    def name(): pass

    @abc.abstractmethod
    def branch_function(self, *args):
        """Does the work for `self.level`."""

    @classmethod
    def add_args(cls, parser):
        shared_args.JobArgs.add_args(parser)
        group = parser.add_argument_group('Lottery Ticket Hyperparameters',
                                          'Hyperparameters that control the lottery ticket process.')
        group.add_argument('--levels', required=True,
                           help='(required: str) The levels to branch off, for example 0,2,5-8.')
        group.add_argument('--pretrain_training_steps',
                           help='(optional: str) How long the experiment was pretrained.')
        cls.BranchDesc.add_args(parser, shared_args.maybe_get_default_hparams())

    @classmethod
    def create_from_args(cls, args):
        desc = cls.BranchDesc.create_from_args(args)
        desc.lottery_desc.run_path(args.replicate, 0)
        shared_args.validate_save_steps(args.weight_save_steps, desc.lottery_desc.str_to_step)
        return cls(args.replicate, parse_levels(args.levels), desc, not args.quiet,
                   evaluate_every_epoch=not args.evaluate_only_at_end, weight_save_steps=args.weight_save_steps)

    @classmethod
    def create_from_hparams(cls, replicate, levels, desc, hparams, verbose=False):
        """`desc` is the LotteryDesc, `hparams` an instance of cls.BranchHparams."""
        return cls(replicate, levels, cls.BranchDesc(desc, hparams), verbose)

    @property
    def seed_names(self):
        return self.lottery_desc.hashname, self.replicate, self.experiment_name

    @property
    def lottery_desc(self):
        return self.desc.lottery_desc

    @property
    def experiment_name(self):
        return self.desc.hashname

    @property
    def branch_root(self):
        """The folder of this branch at the current level."""
        return self.lottery_desc.run_path(self.replicate, self.level, self.experiment_name)

    @property
    def level_root(self):
        """The folder of the experiment at the current level."""
        return self.lottery_desc.run_path(self.replicate, self.level)

    def display_output_location(self):
        print(self.branch_root)

    def run(self):
        hparams = self.desc.branch_hparams
        arguments = {name: getattr(hparams, name) for name in vars(hparams) if not name.startswith('_')}
        for level in self.levels:
            self.level = level
            if self.verbose and get_platform().is_primary_process:
                print_frame(f'Branch {self.name()} (Replicate {self.replicate}, Level {level})', self.desc.display,
                            self.branch_root)
            self.branch_function(**arguments)

    # What branch functions are made of.

    def require_mask(self):
        """Raises FileNotFoundError when the level has no mask, for it has not been trained."""
        if not Mask.exists(self.level_root):
            raise self._missing(f'there is no mask in {self.level_root}')

    def load_mask(self, model):
        """The level's mask; FileNotFoundError when there is none, CorruptFileError when it does not fit the model."""
        self.require_mask()
        return load_mask_for(model, self.level_root)

    def load_level_model(self, step):
        """The level's own model at a step; FileNotFoundError when it was not saved there."""
        if not models_registry.exists(self.level_root, step):
            raise self._missing(f'no model of step ep{step.ep} it{step.it} in {self.level_root}')
        return models_registry.load(self.level_root, step, self.lottery_desc.model_hparams,
                                    self.lottery_desc.train_outputs)

    def _missing(self, what):
        return FileNotFoundError(f'level {self.level}: {what}. Run `lottery` up to this level first; a branch trains '
                                 'none of its levels.')

    def train(self, pruned_model, start_step, dataset_hparams=None, training_hparams=None):
        """Trains in the branch's folder, with the experiment's data and hyperparameters unless others are given."""
        standard_train(pruned_model, self.branch_root, dataset_hparams or self.lottery_desc.dataset_hparams,
                       training_hparams or self.lottery_desc.training_hparams, start_step=start_step,
                       verbose=self.verbose, evaluate_every_epoch=self.evaluate_every_epoch,
                       weight_save_steps=self.weight_save_steps, title=f'{self.name()} level {self.level}')


def parse_levels(text):
    """'0,2,5-8' -> [0, 2, 5, 6, 7, 8]: sorted, without duplicates; a reversed range is empty."""
    levels = set()
    for part in text.split(','):
        match = re.fullmatch(r'(\d+)(?:-(\d+))?', part.strip())
        if not match:
            raise UserError(f"malformed --levels '{text}': write for example 0,2,5-8")
        first, last = match.groups()
        levels.update(range(int(first), int(last or first) + 1))
    return sorted(levels)
