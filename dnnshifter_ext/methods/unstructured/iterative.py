"""`branch train iterative`: prune a trained model, train it on, repeat. With rewinding: the command `lottery`."""

import os

from dnnshifter_ext.methods.unstructured import registry
from dnnshifter_ext.methods.unstructured.job import Job
from dnnshifter_ext.methods.unstructured.schedule import num_kept
from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import check_fraction
from open_lth.foundations.runner import print_heading
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel, load_mask_for
from open_lth.training.branch import base
from open_lth.training.checkpointing import restore_rng_state, save_rng_state
from open_lth.training.train import standard_train


class Branch(base.Branch):
    """Round k is in the folder round_k, which looks like that of `branch train oneshot`."""

    FLAG_HELP = {
        'strategy': f'What a weight is worth: {registry.known()}.',
        'prune_fraction': 'The fraction of the remaining weights that goes in each round.',
        'num_rounds': 'How many times to prune and train.',
        'start_step': 'The step at which the training of each round starts, for example 120ep of 160ep.',
        'pruning_layers_to_ignore': 'Comma-separated names of weights that are not pruned, for example fc.weight.',
        'strategy_options': 'Of the score, for example num_steps=1,first_order=1 (see docs/methods.md).',
        'seed': 'The seed of scores; by default the replicate.',
    }

    def branch_function(self, strategy: str, prune_fraction: float, num_rounds: int, start_step: str,
                        pruning_layers_to_ignore: str = None, strategy_options: str = None, seed: int = None):
        desc = self.train_desc
        previous = desc.run_path(self.replicate)
        if not models_registry.exists(previous, desc.end_step):
            raise FileNotFoundError(f'no trained model in {previous}. Run `train` with the same hyperparameters first.')
        for number in range(1, num_rounds + 1):
            location = os.path.join(self.branch_root, f'round_{number}')
            if Mask.exists(location):
                restore_rng_state(location, 'prune')
            elif get_platform().is_primary_process:
                self._make_mask(previous, location, prune_fraction, self.replicate if seed is None else seed)
            get_platform().barrier()

            if self._speaks:
                print_heading(f'Round {number}')
            model = models_registry.load(previous, desc.end_step, desc.model_hparams, desc.train_outputs)
            standard_train(PrunedModel(model, load_mask_for(model, location)), location, desc.dataset_hparams,
                           desc.training_hparams, start_step=desc.str_to_step(start_step), verbose=self.verbose,
                           evaluate_every_epoch=self.evaluate_every_epoch, weight_save_steps=self.weight_save_steps,
                           title=f'round {number}/{num_rounds}')
            previous = location

    def _make_mask(self, previous, location, prune_fraction, seed):
        desc = self.train_desc
        model = models_registry.load(previous, desc.end_step, desc.model_hparams, desc.train_outputs)
        before = load_mask_for(model, previous) if Mask.exists(previous) else Mask.ones_like(model)
        mask = self._job().run(model, num_kept(before.num_kept, prune_fraction), location, desc.dataset_hparams,
                               desc.model_hparams, seed, before, self._speaks)
        save_rng_state(location, 'prune')
        mask.save(location)

    def validate(self):
        hparams = self.desc.branch_hparams
        self._job()
        check_fraction(hparams, 'prune_fraction', below_one=True)
        if hparams.num_rounds < 1:
            raise UserError(f'--num_rounds must be at least 1, not {hparams.num_rounds}')
        if self.train_desc.str_to_step(hparams.start_step) >= self.train_desc.end_step:
            raise UserError(f'--start_step={hparams.start_step} is not before the end of training')

    def _job(self):
        hparams = self.desc.branch_hparams
        return Job.from_flags(hparams.strategy, options=hparams.strategy_options,
                              layers_to_ignore=hparams.pruning_layers_to_ignore)

    @property
    def _speaks(self):
        return self.verbose and get_platform().is_primary_process

    @staticmethod
    def description():
        return 'Prune a trained model, train it on from --start_step, repeat.'

    @staticmethod
    def name():
        return 'iterative'
