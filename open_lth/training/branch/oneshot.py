"""Prunes a model of a training run at one moment, by any score, and trains it with that mask."""

from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import check_fraction
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.pruning import oneshot
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel, load_mask_for
from open_lth.pruning.scores import examples
from open_lth.pruning.scores import registry as scores_registry
from open_lth.training.branch import base
from open_lth.training.checkpointing import restore_rng_state, save_rng_state
from open_lth.training.train import standard_train
from open_lth.utils.tensor_utils import shuffle_state_dict


class Branch(base.Branch):
    def branch_function(self, strategy: str, prune_fraction: float, prune_experiment: str = 'main',
                        prune_step: str = '0ep0it', prune_highest: bool = False, prune_iterations: int = 1,
                        randomize_layerwise: bool = False, state_experiment: str = 'main', state_step: str = '0ep0it',
                        start_step: str = '0ep0it', seed: int = None, reinitialize: bool = False):
        desc = self.train_desc
        if Mask.exists(self.branch_root):
            restore_rng_state(self.branch_root, 'prune')
        elif get_platform().is_primary_process:
            if not reinitialize:
                self._require(state_experiment, state_step)
            model = self._load(prune_experiment, prune_step)
            seed = self.replicate if seed is None else seed
            mask = self._make_mask(model, seed)
            if randomize_layerwise:
                mask = Mask(shuffle_state_dict(mask, seed=seed))
            save_rng_state(self.branch_root, 'prune')
            mask.save(self.branch_root)
        get_platform().barrier()

        if reinitialize:
            model = models_registry.get(desc.model_hparams, desc.train_outputs)
        else:
            model = self._load(state_experiment, state_step)
        mask = load_mask_for(model, self.branch_root)
        standard_train(PrunedModel(model, mask), self.branch_root, desc.dataset_hparams, desc.training_hparams,
                       start_step=desc.str_to_step(start_step), verbose=self.verbose,
                       evaluate_every_epoch=self.evaluate_every_epoch, weight_save_steps=self.weight_save_steps,
                       title=f'{strategy} {prune_fraction:g}')

    def _make_mask(self, model, seed):
        """The mask for a model. An extension that prunes in other ways overrides this and `_validate_strategy`."""
        hparams = self.desc.branch_hparams
        return oneshot.prune(model, self._score_function(hparams.strategy, seed), hparams.prune_fraction,
                             hparams.prune_iterations, hparams.prune_highest)

    def _validate_strategy(self):
        scores_registry.get(self.desc.branch_hparams.strategy)

    def validate(self):
        hparams = self.desc.branch_hparams
        self._validate_strategy()
        check_fraction(hparams, 'prune_fraction', below_one=True)
        if hparams.prune_iterations < 1:
            raise UserError(f'--prune_iterations must be at least 1, not {hparams.prune_iterations}')
        for name in ('prune_step', 'state_step', 'start_step'):
            self.train_desc.str_to_step(getattr(hparams, name))

    def _score_function(self, strategy, seed):
        score = scores_registry.get(strategy)
        loader = None
        if score.examples_per_class:
            loader = examples.select(self.train_desc.dataset_hparams, score.examples_per_class, seed)
        return lambda model: score.function(model, loader, seed=seed)

    def _require(self, experiment, step_text):
        """(location, step) of a saved model; FileNotFoundError when there is none."""
        location = self.train_desc.run_path(self.replicate, experiment)
        step = self.train_desc.str_to_step(step_text)
        if not models_registry.exists(location, step):
            raise FileNotFoundError(f'no model of step {step_text} in {location}. Run `train` with the same '
                                    'hyperparameters (and --weight_save_steps) first.')
        return location, step

    def _load(self, experiment, step_text):
        location, step = self._require(experiment, step_text)
        return models_registry.load(location, step, self.train_desc.model_hparams, self.train_desc.train_outputs)

    @staticmethod
    def description():
        return 'Prune once, by any score, and train.'

    @staticmethod
    def name():
        return 'oneshot_experiments'
