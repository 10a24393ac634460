"""What a trained sparse model costs when it runs, converted and not, next to the dense model it came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
import json
import os

import torch

from dnnshifter_ext.conversion import convert
from dnnshifter_ext.profiler import Profile, profile_together
from experiments import methods, runs, stored
from experiments.runs import TrainedModel
from experiments.scales import Scale, Timing
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.files import write_atomically
from open_lth.foundations.hparams import DatasetHparams
from open_lth.models import registry as models_registry
from open_lth.models.base import Model
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel, load_mask_for

# The dense model as trained, and with fused batch norms; the sparse one, fused; converted exactly, all layers dense;
# the same with those on sparse kernels that are faster so; converted by the paper's rule.
DENSE_UNFUSED, DENSE_FUSED, UNCONVERTED, EXACT, HYBRID, PAPER = (
    'unfused', 'fused', 'unconverted', 'exact', 'hybrid', "paper's rule")
NUM_EXAMPLES_VERIFIED = 16


@dataclass(frozen=True)
class Form:
    """answers_changed: share of the test images on which it answers otherwise than the unconverted sparse model."""

    profile: Profile
    answers_changed: float


@dataclass(frozen=True)
class Measurement:
    """All forms of a sparse model and its dense baseline, timed in turn in one process; kept in the model's folder."""

    model: TrainedModel
    baseline: TrainedModel
    timing: Timing
    alone = True

    @property
    def title(self) -> str:
        model = self.model
        return f'time {model.network.name} {methods.LABELS[model.method]} {model.ratio}x, replicate {model.replicate}'

    @property
    def directory(self) -> str:
        return os.path.join(self.model.location, 'runtime')

    @property
    def is_done(self) -> bool:
        """With the same settings, that is; a GPU that has come since, or the number of threads, is not looked at."""
        return self.model.is_trained and self._stored().get('timing') == self._settings

    @property
    def blocked_by(self) -> str | None:
        missing = next((model for model in (self.model, self.baseline) if not model.is_trained), None)
        return None if missing is None else f'a trained model in {missing.location}'

    def work(self) -> None:
        """Converts, measures and writes. Raises ValueError for a model that cannot be converted."""
        forms = measure(self)
        with write_atomically(self._path) as file:
            json.dump({'timing': self._settings, 'forms': {
                name: {'profile': form.profile.to_dict(), 'answers_changed': form.answers_changed}
                for name, form in forms.items()}}, file, indent=4)

    def forms(self) -> dict[str, Form]:
        """Of a measurement that is done, the dense model first."""
        return {name: Form(Profile.from_dict(data['profile']), data['answers_changed'])
                for name, data in self._stored()['forms'].items()}

    @property
    def _settings(self) -> dict:
        return asdict(self.timing) | {'batch_sizes': list(self.timing.batch_sizes), 'hybrid': True}

    @property
    def _path(self) -> str:
        return os.path.join(self.directory, 'runtime.json')

    def _stored(self) -> dict:
        try:
            return stored.read(self._path)
        except FileNotFoundError:
            return {}


def declare(scale: Scale) -> tuple[Measurement, ...]:
    """One for each sparse model of the comparison."""
    return tuple(
        Measurement(model, runs.dense(scale, model.network, model.replicate).models[0], scale.timing)
        for run in runs.comparison(scale) for model in run.models if model.method != methods.DENSE)


def measure(measurement: Measurement) -> dict[str, Form]:
    """All forms, the dense model first. The published rule is applied to IMP, as published."""
    timing = measurement.timing
    images = _test_images(measurement.model.network.lottery.dataset_hparams, timing.num_images)
    verified = images[:NUM_EXAMPLES_VERIFIED]
    dense, sparse = load(measurement.baseline), load(measurement.model)
    exact = convert(sparse, verified, execution='auto')
    models = {DENSE_UNFUSED: dense, DENSE_FUSED: convert(dense, verified).fused, UNCONVERTED: exact.fused,
              EXACT: exact.pruned, HYBRID: exact.model}
    if measurement.model.method == methods.IMP:
        models[PAPER] = convert(sparse, verified, mode='paper').model
    profiles = profile_together(models, images.shape[1:], batch_sizes=timing.batch_sizes,
                                device=get_platform().torch_device, budget_s=timing.budget_s)
    with torch.inference_mode():
        answers = {name: model(images).argmax(1) for name, model in models.items()}
    return {name: Form(profile, (answers[name] != answers[UNCONVERTED]).float().mean().item())
            for name, profile in profiles.items()}


def load(trained: TrainedModel) -> Model:
    """The model at the end of its training, its mask multiplied in, in evaluation mode."""
    network = trained.network.training
    model = models_registry.load(trained.location, trained.end_step, network.model_hparams, network.train_outputs)
    if Mask.exists(trained.location):
        model = PrunedModel(model, load_mask_for(model, trained.location)).model
    return model.eval()


def _test_images(dataset_hparams: DatasetHparams, num: int) -> torch.Tensor:
    """The first `num` images of the test set, on the CPU."""
    batches = []
    for images, _ in datasets_registry.get(dataset_hparams, train=False):
        batches.append(images.cpu())
        if sum(map(len, batches)) >= num:
            break
    return torch.cat(batches)[:num]
