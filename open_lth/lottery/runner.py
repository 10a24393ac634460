"""The command `lottery`: train, prune the smallest weights, rewind the rest, repeat (Frankle & Carbin, 2019)."""

from dataclasses import dataclass

from open_lth.cli import shared_args
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.errors import UserError
from open_lth.foundations.runner import Runner, print_frame, print_heading
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.pruning import registry as pruning_registry
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel, load_mask_for
from open_lth.training.checkpointing import restore_rng_state, save_rng_state
from open_lth.training.train import is_finished, standard_train


@dataclass
class LotteryRunner(Runner):
    """Levels 0 to `levels`. Finished stages are skipped and leave the random generators as they did when they ran."""

    replicate: int
    levels: int
    desc: LotteryDesc
    verbose: bool = True
    evaluate_every_epoch: bool = True
    weight_save_steps: str = ''

    @staticmethod
    def description():
        return 'Run a lottery ticket experiment: train, prune, rewind, repeat.'

    @staticmethod
    def add_args(parser):
        shared_args.JobArgs.add_args(parser)
        group = parser.add_argument_group('Lottery Ticket Hyperparameters',
                                          'Hyperparameters that control the lottery ticket process.')
        group.add_argument('--levels', type=int, required=True,
                           help='(required: int) How many times to prune: levels 0 to this one are trained.')
        LotteryDesc.add_args(parser)

    @classmethod
    def create_from_args(cls, args):
        if args.levels < 0:
            raise UserError(f'--levels must be 0 or more, not {args.levels}')
        desc = LotteryDesc.create_from_args(args)
        desc.run_path(args.replicate, 0)
        shared_args.validate_save_steps(args.weight_save_steps, desc.str_to_step)
        return cls(args.replicate, args.levels, desc, not args.quiet, not args.evaluate_only_at_end,
                   args.weight_save_steps)

    @property
    def seed_names(self):
        return self.desc.hashname, self.replicate

    def display_output_location(self):
        print(self._location(0))

    def _location(self, level):
        return self.desc.run_path(self.replicate, level)

    def _say(self, say, *args):
        if self.verbose and get_platform().is_primary_process:
            say(*args)

    def run(self):
        platform = get_platform()
        self._say(print_frame, f'Lottery Ticket Experiment (Replicate {self.replicate})', self.desc.display,
                  self._location(0))
        if not all(is_finished(self._location(level), self.desc.train_end_step) for level in range(self.levels + 1)):
            for hparams in (self.desc.pretrain_dataset_hparams, self.desc.dataset_hparams):
                if hparams:
                    datasets_registry.find(hparams)
        self.desc.save(self._location(0))
        if self.desc.pretrain_training_hparams:
            self._pretrain()
        if platform.is_primary_process:
            self._establish_initial_weights()
        platform.barrier()
        for level in range(self.levels + 1):
            if platform.is_primary_process:
                self._prune_level(level)
            platform.barrier()
            self._train_level(level)

    def _pretrain(self):
        location = self._location('pretrain')
        if is_finished(location, self.desc.pretrain_end_step):
            restore_rng_state(location, 'train')
            return
        self._say(print_heading, 'Pretraining')
        model = models_registry.get(self.desc.model_hparams, outputs=self.desc.pretrain_outputs)
        standard_train(model, location, self.desc.pretrain_dataset_hparams, self.desc.pretrain_training_hparams,
                       verbose=self.verbose, evaluate_every_epoch=self.evaluate_every_epoch, title='pretraining')

    def _establish_initial_weights(self):
        location = self._location(0)
        if models_registry.exists(location, self.desc.train_start_step):
            restore_rng_state(location, 'init')
            return
        model = models_registry.get(self.desc.model_hparams, outputs=self.desc.train_outputs)
        if self.desc.pretrain_training_hparams:
            # OpenLTH compatibility: the output layer comes along even to another task, as both count as 'default'.
            pretrained = models_registry.load(self._location('pretrain'), self.desc.pretrain_end_step,
                                              self.desc.model_hparams, self.desc.pretrain_outputs)
            model.load_state_dict(pretrained.state_dict())
        save_rng_state(location, 'init')
        model.save(location, self.desc.train_start_step)

    def _prune_level(self, level):
        location = self._location(level)
        if Mask.exists(location):
            restore_rng_state(location, 'prune')
            return
        if level == 0:
            mask = Mask.ones_like(models_registry.get(self.desc.model_hparams, outputs=self.desc.train_outputs))
        else:
            previous = self._location(level - 1)
            model = models_registry.load(previous, self.desc.train_end_step, self.desc.model_hparams,
                                         self.desc.train_outputs)
            mask = self._make_mask(level, model, load_mask_for(model, previous))
        save_rng_state(location, 'prune')
        mask.save(location)

    def _make_mask(self, level, model, mask):
        """The next level's mask. An extension whose strategies need more than the model overrides this method."""
        return pruning_registry.get(self.desc.pruning_hparams)(model, mask)

    def _train_level(self, level):
        """Trains one level from the rewinding step. An extension that acts on each level overrides this method."""
        location = self._location(level)
        if is_finished(location, self.desc.train_end_step):
            restore_rng_state(location, 'train')
            return
        self._say(print_heading, f'Pruning Level {level}')
        model = models_registry.load(self._location(0), self.desc.train_start_step, self.desc.model_hparams,
                                     self.desc.train_outputs)
        pruned_model = PrunedModel(model, load_mask_for(model, location))
        pruned_model.save(location, self.desc.train_start_step)
        standard_train(pruned_model, location, self.desc.dataset_hparams, self.desc.training_hparams,
                       start_step=self.desc.train_start_step, verbose=self.verbose,
                       evaluate_every_epoch=self.evaluate_every_epoch, weight_save_steps=self.weight_save_steps,
                       title=f'level {level}/{self.levels}')
