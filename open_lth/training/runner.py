"""The command `train`."""

from dataclasses import dataclass

from open_lth.cli import shared_args
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.runner import Runner, print_frame
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.training.desc import TrainingDesc
from open_lth.training.train import is_finished, standard_train


@dataclass
class TrainingRunner(Runner):
    replicate: int
    desc: TrainingDesc
    verbose: bool = True
    evaluate_every_epoch: bool = True
    weight_save_steps: str = ''

    @staticmethod
    def description():
        return 'Train a model.'

    @staticmethod
    def add_args(parser):
        shared_args.JobArgs.add_args(parser)
        TrainingDesc.add_args(parser)

    @staticmethod
    def create_from_args(args):
        desc = TrainingDesc.create_from_args(args)
        shared_args.validate_save_steps(args.weight_save_steps, desc.str_to_step)
        return TrainingRunner(args.replicate, desc, not args.quiet, not args.evaluate_only_at_end,
                              args.weight_save_steps)

    @property
    def seed_names(self):
        return self.desc.hashname, self.replicate

    @property
    def _output_location(self):
        return self.desc.run_path(self.replicate)

    def display_output_location(self):
        print(self._output_location)

    def run(self):
        if self.verbose and get_platform().is_primary_process:
            print_frame(f'Training a Model (Replicate {self.replicate})', self.desc.display, self._output_location)
        finished = is_finished(self._output_location, self.desc.end_step)
        if not finished:
            datasets_registry.find(self.desc.dataset_hparams)
        self.desc.save(self._output_location)
        if finished:
            return
        model = models_registry.get(self.desc.model_hparams, outputs=self.desc.train_outputs)
        standard_train(model, self._output_location, self.desc.dataset_hparams, self.desc.training_hparams,
                       verbose=self.verbose, evaluate_every_epoch=self.evaluate_every_epoch,
                       weight_save_steps=self.weight_save_steps)
