"""What defines a training run."""

from dataclasses import dataclass

from open_lth.cli import shared_args
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.desc import Desc, join_run_path
from open_lth.foundations.hparams import DatasetHparams, ModelHparams, TrainingHparams
from open_lth.foundations.step import Step
from open_lth.models import registry as models_registry
from open_lth.training import optimizers


@dataclass
class TrainingDesc(Desc):
    model_hparams: ModelHparams
    dataset_hparams: DatasetHparams
    training_hparams: TrainingHparams

    @staticmethod
    def name_prefix():
        return 'train'

    @staticmethod
    def add_args(parser, defaults=None):
        """`defaults` may be any desc with these three bundles."""
        defaults = defaults or shared_args.maybe_get_default_hparams()
        for name, bundle in _BUNDLES.items():
            bundle.add_args(parser, defaults=getattr(defaults, name, None))

    @classmethod
    def create_from_args(cls, args):
        desc = cls(**{name: bundle.create_from_args(args) for name, bundle in _BUNDLES.items()})
        desc.validate()
        return desc

    def validate(self):
        """Raises UserError for a hyperparameter that cannot be used; reads no data."""
        models_registry.validate(self.model_hparams)
        optimizers.validate(self.training_hparams, datasets_registry.iterations_per_epoch(self.dataset_hparams))
        image_shape = datasets_registry.image_shape(self.dataset_hparams)
        if image_shape:
            models_registry.validate_fit(self.model_hparams, image_shape)

    def str_to_step(self, text):
        return Step.from_str(text, datasets_registry.iterations_per_epoch(self.dataset_hparams))

    @property
    def end_step(self):
        return self.str_to_step(self.training_hparams.training_steps)

    @property
    def train_outputs(self):
        """OpenLTH compatibility: always None, so models have their family's default number of outputs."""
        return None

    def run_path(self, replicate, experiment='main'):
        return join_run_path(self.hashname, f'replicate_{replicate}', experiment)

    @property
    def display(self):
        return '\n'.join(getattr(self, name).display for name in ('dataset_hparams', 'model_hparams',
                                                                  'training_hparams'))


_BUNDLES = dict(dataset_hparams=DatasetHparams, model_hparams=ModelHparams, training_hparams=TrainingHparams)
