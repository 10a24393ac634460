"""What the weights of one conv or linear layer say about its channels."""

# O = output channels, I = input channels, G = groups, K = taps of the kernel (all dimensions flattened)

from __future__ import annotations

from functools import cached_property

import torch
from torch import nn


class LayerFacts:
    """Questions about one layer, answered from its weights; all answers are on the CPU.

    `constants` must be asked first: it says what is known of the inputs (constant_I, constants_I in float64).
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.groups = getattr(module, 'groups', 1)
        self.num_outputs = module.weight.shape[0]
        self.num_inputs = module.weight.shape[1] * self.groups

    def constants(self, constant_I: torch.Tensor, constants_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which outputs are constant, and their values before any activation (float64, 0 where not): two of (O,)."""
        self._constant_I, self._constants_I = constant_I, constants_I
        constant_O = ~(self._reads_GOI & ~self._by_group(constant_I)).any(2).view(-1)
        shown_I = constant_I & (constants_I != 0)
        if shown_I.any() and constant_O.any() and self._taps_on_padding_K.any():
            constant_O &= ~(self._reads_padding_GOI & self._by_group(shown_I)).any(2).view(-1)
        bias_O = torch.zeros(self.num_outputs, dtype=torch.float64)
        if self.module.bias is not None:
            bias_O += torch.where(constant_O, self.module.bias.detach().double().cpu(), 0.0)
        if shown_I.any() and constant_O.any():
            rows = constant_O.nonzero()[:, 0]
            summed_RI = _taps(self.module.weight.detach().index_select(0, rows.to(self.module.weight.device))).sum(2)
            group_R = rows // (self.num_outputs // self.groups)
            bias_O[rows] += (summed_RI.cpu() * constants_I.view(self.groups, -1)[group_R]).sum(1)
        self.constant_O = constant_O
        return constant_O, bias_O

    def reads(self, varies_O: torch.Tensor) -> torch.Tensor:
        """Inputs for which an output that is read and varies has a non-zero weight, (I,)."""
        return (self._reads_GOI & varies_O.view(self.groups, -1, 1)).any(1).view(-1)

    def cut(self, varies_O: torch.Tensor) -> torch.Tensor:
        """Inputs with a constant other than zero that such an output sees beside the zero padding, (I,)."""
        shown_I = self._constant_I & (self._constants_I != 0)
        if not (shown_I.any() and varies_O.any() and self._taps_on_padding_K.any()):
            return torch.zeros_like(shown_I)
        return (self._reads_padding_GOI & varies_O.view(self.groups, -1, 1)).any(1).view(-1) & shown_I

    @property
    def reads_any_O(self) -> torch.Tensor:
        """Has the output any non-zero weight at all? (O,)"""
        return self._reads_GOI.any(2).view(-1)

    def _by_group(self, mask_I: torch.Tensor) -> torch.Tensor:
        return mask_I.view(self.groups, 1, -1)

    @cached_property
    def _reads_GOI(self) -> torch.Tensor:
        """Has the output any non-zero weight for the input? (G, O/G, I/G)"""
        weight = self.module.weight.detach()
        return _any_tap(weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]).view(
            self.groups, -1, weight.shape[1]).cpu()

    @cached_property
    def _reads_padding_GOI(self) -> torch.Tensor:
        """The same for the taps that can fall on the padding."""
        weight = self.module.weight.detach().flatten(2)
        return _any_tap(weight[:, :, self._taps_on_padding_K.to(weight.device)]).view(
            self.groups, -1, weight.shape[1]).cpu()

    @cached_property
    def _taps_on_padding_K(self) -> torch.Tensor:
        return taps_on_padding(self.module)


def taps_on_padding(module: nn.Module) -> torch.Tensor:
    """Taps of the kernel, (K,), that can fall on the zero padding of a convolution at some position or resolution.

    Tap t reads input position stride * output - padding + dilation * t. It stays inside the image everywhere when
    padding_before <= dilation * t <= dilation * (kernel - 1) - padding_after: the middle of a padded 3x3, for
    example.
    """
    if isinstance(module, nn.Linear):
        return torch.zeros(1, dtype=torch.bool)
    inside = torch.ones(1, dtype=torch.bool)
    for dim, (size, dilation) in enumerate(zip(module.kernel_size, module.dilation, strict=True)):
        reach = dilation * (size - 1)
        if module.padding == 'same':
            before, after = reach // 2, reach - reach // 2
        else:
            before = after = 0 if module.padding == 'valid' else module.padding[dim]
        offset = dilation * torch.arange(size)
        inside = (inside[:, None] & ((before <= offset) & (offset <= reach - after))).flatten()
    return ~inside if module.padding_mode == 'zeros' else torch.zeros_like(inside)


def _any_tap(weight_OIK: torch.Tensor) -> torch.Tensor:
    """Is any tap other than zero? (O, I). As a matrix product, because reductions over a short last dimension crawl."""
    num_taps = weight_OIK.shape[2]
    if num_taps == 1:
        return weight_OIK[:, :, 0] != 0
    magnitudes = weight_OIK.abs().reshape(-1, num_taps)
    return ((magnitudes @ magnitudes.new_ones(num_taps)) != 0).view(weight_OIK.shape[:2])


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, *kernel) as (O, I, K) in float64."""
    return weight.double().reshape(*weight.shape[:2], -1)
