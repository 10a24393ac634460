"""`branch train oneshot` with more strategies, exact counts, and the cost of scoring on the screen and in a file."""

from dnnshifter_ext.methods.unstructured import registry
from dnnshifter_ext.methods.unstructured.cost import measured
from dnnshifter_ext.methods.unstructured.job import Job, record
from dnnshifter_ext.methods.unstructured.schedule import num_kept
from open_lth.foundations.errors import UserError
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import load_mask_for
from open_lth.training.branch import oneshot


class Branch(oneshot.Branch):
    """The engine's branch: same name, same flags (so same folders), and three more.

    What the engine can do by itself it does, bit for bit; --schedule, or a strategy that it does not know, is ours.
    """

    FLAG_HELP = {
        'strategy': f'What a weight is worth: {registry.known()}.',
        'prune_fraction': 'The fraction of all prunable weights that goes: 1 - 1/C for a compression ratio of C.',
        'prune_experiment': 'The experiment whose model is scored: main, or the name of a branch. Pruning goes on from '
                            'its mask if it has one.',
        'prune_step': 'The step of the model that is scored.',
        'prune_highest': 'The highest scores go.',
        'prune_iterations': "Rounds of scoring and pruning; by default the method's own: ntk_sap 20, synflow 100 (with "
                            '--schedule), others 1.',
        'randomize_layerwise': 'Shuffles the mask within each layer.',
        'state_experiment': 'The experiment whose weights are trained.',
        'state_step': 'The step of the weights that are trained.',
        'start_step': 'The step at which training starts.',
        'seed': 'The seed of scores and shuffles; by default the replicate.',
        'reinitialize': 'Trains new weights.',
        'schedule': 'How many go in each round: one_shot, linear, exponential. With it the counts are exact; without, '
                    'random, magnitude, synflow, snipN, graspN and graspabsN are as in OpenLTH, where one weight more '
                    'goes in each round.',
        'pruning_layers_to_ignore': 'Comma-separated names of weights that are not pruned, for example fc.weight.',
        'strategy_options': 'Of the score, for example num_steps=1,first_order=1 (see docs/methods.md).',
    }

    def branch_function(self, strategy: str, prune_fraction: float, prune_experiment: str = 'main',
                        prune_step: str = '0ep0it', prune_highest: bool = False, prune_iterations: int = 1,
                        randomize_layerwise: bool = False, state_experiment: str = 'main', state_step: str = '0ep0it',
                        start_step: str = '0ep0it', seed: int = None, reinitialize: bool = False,
                        schedule: str = None, pruning_layers_to_ignore: str = None, strategy_options: str = None):
        super().branch_function(strategy, prune_fraction, prune_experiment, prune_step, prune_highest,
                                prune_iterations, randomize_layerwise, state_experiment, state_step, start_step, seed,
                                reinitialize)

    def _validate_strategy(self):
        if self._is_ours:
            self._job()
            return
        super()._validate_strategy()
        hparams = self.desc.branch_hparams
        for flag in ('pruning_layers_to_ignore', 'strategy_options'):
            if getattr(hparams, flag) is not None:
                raise UserError(f"--{flag} needs --schedule: without it --strategy={hparams.strategy} is OpenLTH's own")

    def _make_mask(self, model, seed):
        hparams, verbose = self.desc.branch_hparams, self.verbose and get_platform().is_primary_process
        if not self._is_ours:
            mask, cost = measured(lambda: super(Branch, self)._make_mask(model, seed), next(model.parameters()).device)
            how = {'strategy': hparams.strategy, 'schedule': 'openlth', 'num_rounds': hparams.prune_iterations,
                   'options': {}, 'layers_to_ignore': [], 'seed': seed}
            record(self.branch_root, how, mask, cost, verbose)
            return mask
        location = self.train_desc.run_path(self.replicate, hparams.prune_experiment)
        mask = load_mask_for(model, location) if Mask.exists(location) else None
        total = Mask.ones_like(model).num_total
        return self._job().run(
            model, num_kept(total, hparams.prune_fraction), self.branch_root, self.train_desc.dataset_hparams,
            self.train_desc.model_hparams, seed, mask, verbose)

    @property
    def _is_ours(self):
        hparams = self.desc.branch_hparams
        return hparams.schedule is not None or not registry.is_of_engine(hparams.strategy)

    def _job(self):
        hparams = self.desc.branch_hparams
        return Job.from_flags(
            hparams.strategy, schedule=hparams.schedule, num_rounds=hparams.prune_iterations,
            options=hparams.strategy_options, layers_to_ignore=hparams.pruning_layers_to_ignore,
            prune_highest=hparams.prune_highest)
