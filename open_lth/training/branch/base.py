"""What a branch off a training run is."""

import abc

from open_lth.cli import shared_args
from open_lth.cli.branching import make_branch_hparams
from open_lth.foundations.errors import UserError
from open_lth.foundations.runner import Runner, print_frame
from open_lth.platforms.platform import get_platform
from open_lth.training.branch.desc import make_BranchDesc


class Branch(Runner):
    """Subclasses define `name`, `description` and `branch_function`, whose annotated parameters become flags."""

    FLAG_HELP = {}

    def __init_subclass__(cls):
        cls.BranchHparams = make_branch_hparams(cls.branch_function, cls.FLAG_HELP)
        cls.BranchDesc = make_BranchDesc(cls.BranchHparams, cls.name())

    def __init__(self, replicate, desc, verbose=False, evaluate_every_epoch=True, weight_save_steps=''):
        self.replicate = replicate
        self.desc = desc
        self.verbose = verbose
        self.evaluate_every_epoch = evaluate_every_epoch
        self.weight_save_steps = weight_save_steps

    @staticmethod
    @abc.abstractmethod
    def name(): pass

    @abc.abstractmethod
    def branch_function(self, *args): pass

    def validate(self):
        """Raises UserError for branch arguments that cannot be used."""

    @classmethod
    def add_args(cls, parser):
        shared_args.JobArgs.add_args(parser)
        cls.BranchDesc.add_args(parser)

    @classmethod
    def create_from_args(cls, args):
        desc = cls.BranchDesc.create_from_args(args)
        if args.replicate < 1:
            raise UserError(f'--replicate must be a positive integer, not {args.replicate}')
        shared_args.validate_save_steps(args.weight_save_steps, desc.train_desc.str_to_step)
        branch = cls(args.replicate, desc, not args.quiet, not args.evaluate_only_at_end, args.weight_save_steps)
        branch.validate()
        return branch

    @classmethod
    def create_from_hparams(cls, replicate, desc, hparams, verbose=False):
        """`desc` is the TrainingDesc, `hparams` an instance of cls.BranchHparams."""
        return cls(replicate, cls.BranchDesc(desc, hparams), verbose)

    @property
    def seed_names(self):
        return self.train_desc.hashname, self.replicate, self.desc.hashname

    @property
    def train_desc(self):
        return self.desc.train_desc

    @property
    def branch_root(self):
        return self.desc.run_path(self.replicate)

    def display_output_location(self):
        print(self.branch_root)

    def run(self):
        if self.verbose and get_platform().is_primary_process:
            print_frame(f'Branch {self.name()} (Replicate {self.replicate})', self.desc.display, self.branch_root)
        hparams = self.desc.branch_hparams
        self.branch_function(**{name: getattr(hparams, name) for name in vars(hparams) if name[0] != '_'})
