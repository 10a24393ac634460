"""How large an experiment is: smoke (the tests: seconds), small (2 CPU cores: minutes), paper (a GPU: days).

A scale says which networks are trained how, at which compression ratios, how often, and how they are timed. The paper's
recipes are the engine's default hyperparameters; Table 2 checks them against the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
import copy
from dataclasses import dataclass, field, replace

from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.errors import UserError
from open_lth.foundations.hparams import DatasetHparams, ModelHparams, TrainingHparams
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import registry as models_registry
from open_lth.pruning.sparse_global import PruningHparams
from open_lth.training.desc import TrainingDesc

NAMES = ('smoke', 'small', 'paper')
# The networks here take colour images.
_IN_COLOUR = {'fashion_mnist': 'fashion_mnist_32'}


@dataclass(frozen=True)
class Network:
    """One network on one data set. lottery: all its hyperparameters; `paper`: the network of the paper it stands for.

    paper is the key in paper.json, paper_title what tables call it.
    """

    name: str
    lottery: LotteryDesc
    paper: str
    paper_title: str

    @property
    def training(self) -> TrainingDesc:
        """The dense baseline."""
        desc = self.lottery
        return TrainingDesc(desc.model_hparams, desc.dataset_hparams, desc.training_hparams)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return 1 / datasets_registry.num_classes(self.lottery.dataset_hparams)

    @property
    def title(self) -> str:
        return f'{self.lottery.model_hparams.model_name}, {self.lottery.dataset_hparams.dataset_name}'


@dataclass(frozen=True)
class Timing:
    """How models are timed. budget_s: see `profile_together`; num_images: test images whose answers are compared."""

    batch_sizes: tuple[int, ...] = (1, 128)
    budget_s: float = 0.5
    num_images: int = 256


@dataclass(frozen=True)
class Switching:
    """Table 5. portfolio: compression ratio -> the level of IMP that has it.

    shrinking: what replaces the training hyperparameters in each phase in which the super-network becomes elastic.
    num_candidates: sub-networks of which num_levels are kept; num_images: for their batch-norm statistics.
    num_rounds: of switches up and down the whole portfolio.
    """

    portfolio: Mapping[int, int]
    shrinking: Mapping[str, float | str]
    num_candidates: int = 24
    num_levels: int = 6
    num_images: int = 2000
    num_rounds: int = 20


@dataclass(frozen=True)
class Scale:
    """levels: compression ratio -> the level of IMP that has it. num_threads: of each run; None leaves it to torch.

    arguments: method -> what replaces its arguments at this scale. folder: of the results.
    """

    name: str
    networks: tuple[Network, ...]
    levels: Mapping[int, int]
    num_replicates: int
    num_threads: int | None
    timing: Timing
    switching: Switching
    arguments: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    folder: str = ''

    @property
    def ratios(self) -> tuple[int, ...]:
        return tuple(self.levels)

    @property
    def num_levels(self) -> int:
        return max(self.levels.values())

    @property
    def replicates(self) -> range:
        return range(1, self.num_replicates + 1)


def get(name: str, dataset: str | None = None, num_replicates: int | None = None) -> Scale:
    """The scale of that name, on another data set or with another number of replicates if they are given.

    The results of another data set have a folder of their own. Raises UserError for an unknown name, or a data set
    whose images the networks do not take.
    """
    if name not in _SCALES:
        raise UserError(f'no such --scale: {name}. Known: {", ".join(NAMES)}')
    if num_replicates is not None and num_replicates < 1:
        raise UserError(f'--replicates must be at least 1, not {num_replicates}')
    scale = _SCALES[name]()
    scale = replace(scale, folder=name, num_replicates=num_replicates or scale.num_replicates)
    if dataset is not None:
        networks = tuple(_on(network, _IN_COLOUR.get(dataset, dataset)) for network in scale.networks)
        if networks != scale.networks:
            scale = replace(scale, networks=networks, folder=f'{name}_{dataset}')
    for network in scale.networks:
        network.lottery.validate()
    return scale


def _on(network: Network, dataset_name: str) -> Network:
    lottery = copy.deepcopy(network.lottery)
    for hparams in (lottery.dataset_hparams, lottery.pretrain_dataset_hparams):
        hparams.dataset_name = dataset_name
    return replace(network, lottery=lottery)


def _smoke() -> Scale:
    training = TrainingHparams(
        optimizer_name='sgd', lr=0.05, training_steps='2ep', momentum=0.9, milestone_steps='1ep', gamma=0.1,
        weight_decay=1e-4)
    shrinking = dict(lr=0.05, training_steps='1ep', milestone_steps='1ep')
    return _reduced(
        'smoke', ('cifar_narrowvgg_5_8', 'cifar_resnet_8_4'), DatasetHparams('digits', 32, subsample_fraction=0.1),
        {'vgg': training, 'resnet': training}, rewinding_steps='5it', pruning_fraction=0.75, levels={4: 1, 16: 2},
        num_replicates=1, timing=Timing(batch_sizes=(1,), budget_s=0, num_images=64),
        switching=Switching({4: 1, 16: 2}, shrinking, num_candidates=5, num_levels=3, num_images=64, num_rounds=1),
        arguments={'synflow': dict(prune_iterations='5'),
                   'ntk_sap': dict(prune_iterations='2', strategy_options='num_draws=1')})


def _small() -> Scale:
    training = TrainingHparams(
        optimizer_name='sgd', lr=0.1, training_steps='2ep', momentum=0.9, milestone_steps='180it,210it', gamma=0.1,
        weight_decay=1e-4, amp='bf16', channels_last=True)
    shrinking = dict(lr=0.05, training_steps='4ep', milestone_steps='340it,420it')
    return _reduced(
        'small', ('cifar_narrowvgg_5_16', 'cifar_resnet_8_16'),
        DatasetHparams('fashion_mnist_32', 64, subsample_fraction=0.12), {'vgg': training, 'resnet': training},
        rewinding_steps='20it', pruning_fraction=0.5, levels={4: 2, 16: 4, 64: 6, 256: 8}, num_replicates=3,
        timing=Timing(batch_sizes=(1, 16), budget_s=0.1),
        switching=Switching({16: 4, 64: 6, 128: 7, 256: 8}, shrinking),
        arguments={'ntk_sap': dict(strategy_options='num_draws=1')})


def _paper() -> Scale:
    levels = {2: 3, 4: 6, 8: 9, 16: 12, 32: 16, 64: 19, 128: 22, 256: 25}
    networks = tuple(
        Network(name, _rewound(models_registry.get_default_hparams(model), '2000it'), *_PAPER[name])
        for name, model in (('vgg', 'cifar_vgg_16'), ('resnet', 'tinyimagenet_resnet_50')))
    # OFA's learning rates: 0.0075, then 0.0025.
    shrinking = dict(lr=0.0075, training_steps='25ep', milestone_steps='13ep', gamma=1 / 3)
    return Scale('paper', networks, levels, num_replicates=3, num_threads=None, timing=Timing(),
                 switching=Switching({16: 12, 64: 19, 128: 22, 256: 25}, shrinking))


_SCALES = {'smoke': _smoke, 'small': _small, 'paper': _paper}
_PAPER = {'vgg': ('vgg16_cifar10', 'VGG-16, CIFAR-10'), 'resnet': ('resnet50_tinyimagenet', 'ResNet-50, Tiny ImageNet')}


def _reduced(
    name: str, models: tuple[str, str], dataset: DatasetHparams, training: Mapping[str, TrainingHparams], *,
    rewinding_steps: str, pruning_fraction: float, levels: Mapping[int, int], num_replicates: int, timing: Timing,
    switching: Switching, arguments: Mapping[str, Mapping[str, str]],
) -> Scale:
    """A VGG and a ResNet that are small. No layer is exempt from pruning: the output layer alone, which the paper
    exempts in its VGG, would be more than all that is left of a small network at 256x."""
    networks = tuple(
        Network(network, _rewound(LotteryDesc(
            ModelHparams(model, model_init='kaiming_normal', batchnorm_init='uniform'), dataset, training[network],
            PruningHparams(pruning_strategy='sparse_global', pruning_fraction=pruning_fraction),
        ), rewinding_steps), *_PAPER[network])
        for network, model in zip(_PAPER, models, strict=True))
    return Scale(name, networks, levels, num_replicates, num_threads=1, timing=timing, switching=switching,
                 arguments=arguments)


def _rewound(desc: LotteryDesc, rewinding_steps: str) -> LotteryDesc:
    """As `lottery --rewinding_steps` makes it."""
    return replace(desc, pretrain_dataset_hparams=copy.deepcopy(desc.dataset_hparams),
                   pretrain_training_hparams=replace(desc.training_hparams, training_steps=rewinding_steps))
