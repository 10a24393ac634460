"""Sparse networks to convert: read from numpy archives, or made here from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import zipfile

import numpy as np
import torch
from torch import nn

from dnnshifter_ext.sources import known_input_shape
from open_lth.foundations.errors import CorruptFileError, UserError
from open_lth.models import registry

# How the name of a checkpoint begins -> the engine's name of its network.
NETWORKS = {'vgg16': 'cifar_vgg_16', 'resnet50': 'tinyimagenet_resnet_50'}
NUM_CALIBRATION_INPUTS = 64


@dataclass(frozen=True)
class Checkpoint:
    """A sparse network: the weights of `path`, or, without one, random weights under a random mask.

    ratio: prunable weights / weights kept; dead_share: of the filters of every layer but the last, those without any
    weight. Both only say what is made up.
    """

    name: str
    network: str
    num_outputs: int
    path: Path | None = None
    ratio: float = 1
    dead_share: float = 0

    def load(self) -> nn.Module:
        """The network in evaluation mode, the same in every call. Raises UserError when the file does not fit."""
        torch.manual_seed(0)
        model = registry.get(registry.get_default_hparams(self.network).model_hparams, self.num_outputs)
        if self.path is None:
            sparsify(model, self.inputs(NUM_CALIBRATION_INPUTS), self.ratio, self.dead_share)
        else:
            try:
                model.load_state_dict({name: torch.from_numpy(value) for name, value in read_arrays(self.path).items()})
            except (RuntimeError, TypeError) as error:
                reason = str(error).strip().splitlines()[-1].strip()
                raise UserError(f'{self.path} does not fit {self.network}: {reason}') from error
        return model.eval()

    def inputs(self, num: int) -> torch.Tensor:
        """Standard normal inputs, the same in every call."""
        return torch.randn(num, *known_input_shape(self.network), generator=torch.Generator().manual_seed(0))


SYNTHETIC = (
    Checkpoint('vgg16_synthetic_16x', 'cifar_vgg_16', 10, ratio=16),
    Checkpoint('vgg16_synthetic_64x', 'cifar_vgg_16', 10, ratio=64),
    Checkpoint('vgg16_synthetic_256x', 'cifar_vgg_16', 10, ratio=256, dead_share=0.3),
    Checkpoint('resnet50_synthetic_256x', 'tinyimagenet_resnet_50', 200, ratio=256, dead_share=0.8),
)


def find(folder: Path) -> tuple[Checkpoint, ...]:
    """All checkpoints NAME.npz of a folder. Raises UserError when there is none, or no network is known for one."""
    found = []
    for path in sorted(folder.glob('*.npz')):
        network = next((network for begin, network in NETWORKS.items() if path.stem.startswith(begin)), None)
        if network is None:
            raise UserError(f'{path}: the name must begin with {" or ".join(NETWORKS)}, which says what network it is')
        matrices = [value for value in read_arrays(path).values() if value.ndim == 2]
        if not matrices:
            raise UserError(f'{path} holds no linear layer, so it is no state of {network}')
        found.append(Checkpoint(path.stem, network, len(matrices[-1]), path))
    if not found:
        raise UserError(f'{folder} holds no *.npz. Without --checkpoints the networks are made up')
    return tuple(found)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Name -> array. Raises CorruptFileError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CorruptFileError(f'{path} is no archive of plain numpy arrays: {error}') from error


def sparsify(model: nn.Module, inputs: torch.Tensor, ratio: float, dead_share: float) -> None:
    """Fills the model with random weights of which one in `ratio` is not zero; draws on torch's global generator.

    The largest weights of the whole network stay, as in magnitude pruning, which leaves small layers denser than large
    ones. Biases and batch norms are random, the running statistics those of `inputs`, so that signals keep their size.
    """
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():
        for layer in layers:
            fan_in = layer.weight[0].numel()
            # Trained networks lie between equal densities (exponent 0) and those of Kaiming's initial weights (0.5).
            layer.weight.normal_().mul_(fan_in ** -0.35)
            if layer is not layers[-1]:
                layer.weight[torch.rand(len(layer.weight)) < dead_share] = 0
            if layer.bias is not None:
                layer.bias.normal_(std=0.1)
        sizes = torch.cat([layer.weight.abs().view(-1) for layer in layers])
        threshold = sizes.kthvalue(max(1, len(sizes) - round(len(sizes) / ratio))).values
        for layer in layers:
            layer.weight.mul_(layer.weight.abs() > threshold)
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
            norm.momentum = None  # the average over all batches seen, which is one
        model.train()(inputs)
