"""Dynamic-OFA (Lou et al., CVPR-W 2021; OFA: Cai et al., ICLR 2020) for VGGs: one super-network, many sub-networks.

A stage is what lies between two max pools. A sub-network has in each stage the first channels of every layer, by a
width multiplier, and of three convolutions all or all but the last. Before training, channels are sorted by importance,
the l1 norm of the weights that read them. A few sub-networks, the levels, are kept with their batch-norm statistics; a
switch builds one with copied weights. The paper says nothing of its VGG-16: this is our reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from dnnshifter_ext.costs import size_bytes
from open_lth.foundations.step import Step
from open_lth.models.cifar_vgg import ConvModule, Model

WIDTHS = (0.25, 0.5, 0.75, 1.0)
# Stages of this many convolutions can do without their last one.
ELASTIC_DEPTH = 3
NUM_RANDOM = 2
DISTILLATION_WEIGHT = 1.0
BN_MODES = ('stored', 'recalibrate')

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]
Statistics = dict[str, torch.Tensor]


# ---- sub-networks

@dataclass(frozen=True)
class Config:
    """Of a sub-network, per stage: the width multiplier, and whether the last convolution is left out."""

    widths: tuple[float, ...]
    is_shallow: tuple[bool, ...]


def stages(network: Model) -> list[list[int]]:
    """The places in `network.layers` of each stage's convolutions."""
    found: list[list[int]] = [[]]
    for index, layer in enumerate(network.layers):
        if isinstance(layer, ConvModule):
            found[-1].append(index)
        else:
            found.append([])
    return [stage for stage in found if stage]


def has_elastic_depth(network: Model) -> bool:
    return any(len(stage) == ELASTIC_DEPTH for stage in stages(network))


def largest(network: Model) -> Config:
    num_stages = len(stages(network))
    return Config((WIDTHS[-1],) * num_stages, (False,) * num_stages)


def smallest(network: Model, elastic_depth: bool = True) -> Config:
    return uniform(network, WIDTHS[0], elastic_depth)


def uniform(network: Model, width: float, is_shallow: bool) -> Config:
    """The same in all stages, as far as they are elastic."""
    found = stages(network)
    return Config((width,) * len(found), tuple(is_shallow and len(stage) == ELASTIC_DEPTH for stage in found))


def sample(network: Model, elastic_depth: bool = True) -> Config:
    """Uniformly in each stage, from torch's global generator."""
    found = stages(network)
    widths = tuple(WIDTHS[index] for index in torch.randint(len(WIDTHS), (len(found),)).tolist())
    shallow = torch.randint(2, (len(found),)).bool().tolist()
    return Config(widths, tuple(elastic_depth and chosen and len(stage) == ELASTIC_DEPTH
                                for stage, chosen in zip(found, shallow, strict=True)))


def layout(network: Model, config: Config) -> dict[int, int]:
    """Place in `network.layers` -> number of output channels, of each convolution that the sub-network has."""
    used = {}
    for stage, width, is_shallow in zip(stages(network), config.widths, config.is_shallow, strict=True):
        for index in stage[:-1] if is_shallow else stage:
            used[index] = max(1, int(network.layers[index].conv.out_channels * width))
    return used


def sort_channels(network: Model) -> Model:
    """A copy that computes the same, the channels of each layer in falling order of importance."""
    network = copy.deepcopy(network)
    convs = [network.layers[index] for stage in stages(network) for index in stage]
    readers = [*(module.conv for module in convs[1:]), network.fc]
    with torch.no_grad():
        for module, reader in zip(convs, readers, strict=True):
            importance_I = reader.weight.abs().transpose(0, 1).flatten(1).sum(1)
            order = importance_I.argsort(descending=True, stable=True)
            for tensor in (module.conv.weight, module.conv.bias, module.bn.weight, module.bn.bias,
                           module.bn.running_mean, module.bn.running_var):
                tensor.copy_(tensor[order].clone())
            reader.weight.copy_(reader.weight[:, order].clone())
    return network


def extract(network: Model, config: Config) -> Model:
    """The sub-network by itself, its weights copied, in evaluation mode.

    Its batch-norm statistics are the super-network's, which fit the largest sub-network only.
    """
    used, plan, tensors = layout(network, config), [], {}
    num_in = network.layers[0].conv.in_channels
    for index, layer in enumerate(network.layers):
        if isinstance(layer, nn.MaxPool2d):
            plan.append('M')
        elif index in used:
            num_out = used[index]
            for name, tensor in layer.state_dict().items():
                part = tensor[:num_out, :num_in] if tensor.ndim == 4 else tensor[:num_out] if tensor.ndim else tensor
                tensors[f'layers.{len(plan)}.{name}'] = part.clone(memory_format=torch.contiguous_format)
            plan.append(num_out)
            num_in = num_out
    tensors['fc.weight'] = network.fc.weight.detach()[:, :num_in].clone()
    tensors['fc.bias'] = network.fc.bias.detach().clone()
    with torch.device('meta'):  # nothing is drawn
        sub = Model(plan, lambda module: None, network.fc.out_features)
    sub.load_state_dict(tensors, assign=True)
    return sub.eval()


def statistics(network: Model) -> Statistics:
    """Copies of the batch-norm statistics, by their names in the state dict."""
    return {name: tensor.clone() for name, tensor in network.state_dict().items()
            if name.endswith(('running_mean', 'running_var'))}


def recalibrate(network: Model, batches: Batches) -> None:
    """Sets the batch-norm statistics to the means of those of the batches."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch: the plain mean over all batches
    network.train()
    with torch.no_grad():
        for images, _ in batches:
            network(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


# ---- training

class Elastic(nn.Module):
    """The super-network as the engine's training loop wants it; `network` has the weights.

    In training, a batch goes through the largest, the smallest and NUM_RANDOM random sub-networks (sandwich rule) and
    through the teacher, the full network before it became elastic. Progressive shrinking: first elastic_depth=False,
    then True. Else it is the full network. For one device.
    """

    def __init__(self, network: Model, teacher: Model, elastic_depth: bool) -> None:
        super().__init__()
        self.network = network
        self._teacher = (teacher.eval().requires_grad_(False),)  # in a tuple: neither trained nor saved
        self._elastic_depth = elastic_depth

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, D); in training (S + 1, N, D), the teacher's last."""
        if not self.training:
            return self.network(images)
        [teacher] = self._teacher
        configs = [smallest(self.network, self._elastic_depth),
                   *(sample(self.network, self._elastic_depth) for _ in range(NUM_RANDOM))]
        # The full network by itself, so that the statistics of its batch norms follow.
        return torch.stack([self.network(images), *(forward(self.network, config, images) for config in configs),
                            teacher.to(images.device)(images)])

    def loss_criterion(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy; in training the mean over the sub-networks, that with the teacher's probabilities added."""
        if logits.ndim == 2:
            return F.cross_entropy(logits, labels)
        *students, teacher = logits.float()
        soft_labels = teacher.softmax(1)
        return sum(F.cross_entropy(student, labels) + DISTILLATION_WEIGHT * F.cross_entropy(student, soft_labels)
                   for student in students) / len(students)

    def save(self, location: str, step: Step) -> None:
        """The super-network as an ordinary model of its family."""
        self.network.save(location, step)


def forward(network: Model, config: Config, images: torch.Tensor) -> torch.Tensor:
    """Logits (N, D) of a sub-network, with gradients to the super-network; batch norms as in training, none updated."""
    used = layout(network, config)
    x = images
    for index, layer in enumerate(network.layers):
        if isinstance(layer, nn.MaxPool2d):
            x = layer(x)
        elif index in used:
            num_out, conv, bn = used[index], layer.conv, layer.bn
            x = F.conv2d(x, conv.weight[:num_out, :x.shape[1]], conv.bias[:num_out], padding=conv.padding)
            x = F.relu(F.batch_norm(x, None, None, bn.weight[:num_out], bn.bias[:num_out], training=True, eps=bn.eps))
    x = torch.flatten(F.avg_pool2d(x, 2), 1)
    return F.linear(x, network.fc.weight[:, :x.shape[1]], network.fc.bias)


# ---- levels, and switching between them

@dataclass(frozen=True, eq=False)
class Level:
    """A sub-network that can be switched to. accuracy: as a fraction; latency_ms: of one image, alone."""

    config: Config
    statistics: Statistics
    accuracy: float
    latency_ms: float


def candidates(network: Model, num: int) -> list[Config]:
    """The uniform sub-networks, then random ones; at most `num` different ones, from torch's global generator."""
    depths = (False, True) if has_elastic_depth(network) else (False,)
    found = dict.fromkeys(uniform(network, width, is_shallow) for width in WIDTHS for is_shallow in depths)
    for _ in range(10 * num):  # small networks have few
        if len(found) >= num:
            break
        found[sample(network)] = None
    return list(found)


def pareto(levels: Iterable[Level], num: int) -> list[Level]:
    """Of those that no other one beats in latency and accuracy at most `num`, evenly spread; fastest first."""
    front: list[Level] = []
    for level in sorted(levels, key=lambda level: (level.latency_ms, -level.accuracy)):
        if not front or level.accuracy > front[-1].accuracy:
            front.append(level)
    places = torch.linspace(0, len(front) - 1, min(num, len(front))).round().int().tolist()
    return [front[place] for place in places]


class DynamicOFA:
    """The super-network with its levels, one of which is active. calibration: for bn='recalibrate'."""

    def __init__(self, network: Model, levels: Sequence[Level], calibration: Batches = ()) -> None:
        self._network, self._levels, self._calibration = network, levels, calibration
        self._peak_bytes = 0
        self.active: Model | None = None
        self.switch(len(levels) - 1)

    def switch(self, index: int, bn: str = 'stored') -> Model:
        """Builds a level with copied weights and makes it active; the old one goes when the new one is there.

        bn: 'stored' loads the level's statistics, 'recalibrate' measures them anew. Raises ValueError for another one.
        """
        if bn not in BN_MODES:
            raise ValueError(f'bn is {" or ".join(BN_MODES)}, not {bn}')
        level = self._levels[index]
        sub = extract(self._network, level.config)
        if bn == 'stored':
            sub.load_state_dict(level.statistics, strict=False)
        else:
            recalibrate(sub, self._calibration)
        self._peak_bytes = max(self._peak_bytes, self.resident_bytes + size_bytes(sub))
        self.active = sub
        return sub

    @property
    def resident_bytes(self) -> int:
        """Super-network, stored statistics, active sub-network."""
        stored = sum(tensor.nbytes for level in self._levels for tensor in level.statistics.values())
        return size_bytes(self._network) + stored + (size_bytes(self.active) if self.active else 0)

    @property
    def peak_bytes(self) -> int:
        """The same at the worst moment: during a switch, with two sub-networks."""
        return self._peak_bytes


# ---- which level: a pure function of what is observed

@dataclass(frozen=True)
class Constraints:
    """latency_ms: at most; accuracy: at least, as a fraction."""

    latency_ms: float
    accuracy: float = 0.0


@dataclass(frozen=True)
class Selection:
    """The active level, and the stop rule: `barred` and above are not tried again for `num_barred` observations."""

    active: int
    barred: int | None = None
    num_barred: int = 0


def select(selection: Selection, levels: Sequence[Level], observed_ms: float, constraints: Constraints,
           num_barred: int = 50) -> Selection:
    """The next selection, after an answer of the active level took `observed_ms`. levels: fastest first.

    Only levels that are accurate enough are eligible. One eligible level down when the latency constraint is missed,
    and then, against oscillation, not up to that level again for `num_barred` observations; one up where it would be
    met, if the next level is slower than its table says by as much as the active one is.
    Raises ValueError when no level is accurate enough.
    """
    eligible = [index for index, level in enumerate(levels) if level.accuracy >= constraints.accuracy]
    if not eligible:
        raise ValueError(f'no level reaches an accuracy of {constraints.accuracy:g}')
    active = selection.active
    barred = selection.barred if selection.num_barred > 1 else None
    stay = Selection(active, barred, selection.num_barred - 1 if barred is not None else 0)
    below = [index for index in eligible if index < active]
    above = next((index for index in eligible if index > active), None)
    if observed_ms > constraints.latency_ms and below:
        return Selection(below[-1], active, num_barred)
    if active not in eligible and above is not None:
        return Selection(above, stay.barred, stay.num_barred)
    if above is None or observed_ms > constraints.latency_ms or (stay.barred is not None and above >= stay.barred):
        return stay
    slowdown = observed_ms / levels[active].latency_ms
    if slowdown * levels[above].latency_ms > constraints.latency_ms:
        return stay
    return Selection(above, stay.barred, stay.num_barred)
