"""Module 2: which channels are constant, and which does nobody read? Both to a fixed point.

Forward, in the order of the graph, an output is *constant* when every weight that reads a varying input is
zero; its value follows from the bias and the constant inputs and is pushed through the activations to the
reader. Zero padding replaces a non-zero constant at the border, so an output that reads one through a tap
that can fall on the padding varies too. Backward, a channel is *read* when an output that is read and varies
has a non-zero weight for it. Constants do not depend on who reads them and every layer has at most one
producer, so that one sweep each way, in the order of the graph and against it, reaches the fixed point.

Zero is tested by value: the negative zeros a multiplied mask leaves count as zero.
"""

# O = output channels, I = input columns, K = taps of the kernel (all dimensions flattened)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn

from dnnshifter_ext.graph import layers
from dnnshifter_ext.links import Link, push_constants


@dataclass(frozen=True)
class LayerSparsity:
    """What is known of the outputs of one layer; all tensors on the CPU.

    constant_O: the output does not depend on the model's input or on the position.
    bias_O: the value of a constant output before any activation (float64; 0 where it varies).
    value_O: the same as it arrives at the reader, after the link's activations (float64; 0 where it varies).
    read_O: an output of the reader that is read and varies has a non-zero weight for it; True without a link.
    cut_O: constant, read, not zero, and the reader's zero padding shows: not the same at every position.
    """

    constant_O: torch.Tensor
    bias_O: torch.Tensor
    value_O: torch.Tensor
    read_O: torch.Tensor
    cut_O: torch.Tensor


Sparsity = dict[str, LayerSparsity]


@dataclass(frozen=True)
class _Inputs:
    """The constant columns of a layer's input, and their values (float64, 0 where the column varies)."""

    constant_I: torch.Tensor
    value_I: torch.Tensor

    @property
    def shown_I(self) -> torch.Tensor:
        """Columns with a constant other than zero: those that differ from a zero padding."""
        return self.constant_I & (self.value_I != 0)


def analyse(graph_module: fx.GraphModule, links: list[Link]) -> Sparsity:
    """Layer name -> what is known of its outputs, for every ungrouped conv or linear layer called once."""
    modules = {name: graph_module.get_submodule(name) for name in layers(graph_module)}
    link_from = {link.producer: link for link in links}
    with torch.no_grad():
        reads_OI = {name: _reads(module.weight) for name, module in modules.items()}
        inputs = {name: _all_varying(reads.shape[1]) for name, reads in reads_OI.items()}
        constant_O: dict[str, torch.Tensor] = {}
        bias_O: dict[str, torch.Tensor] = {}
        value_O: dict[str, torch.Tensor] = {}
        for name, module in modules.items():
            constant_O[name], bias_O[name] = _constants(module, reads_OI[name], inputs[name])
            value_O[name] = torch.zeros_like(bias_O[name])
            link = link_from.get(name)
            if link is not None and constant_O[name].any():
                pushed_O = push_constants(graph_module, link, bias_O[name])
                value_O[name] = torch.where(constant_O[name], pushed_O, 0.0)
                inputs[link.reader] = _Inputs(constant_O[name].repeat_interleave(link.features_per_channel),
                                              value_O[name].repeat_interleave(link.features_per_channel))
        found: Sparsity = {}
        for name in reversed(modules):
            read_O = torch.ones_like(constant_O[name])
            cut_O = torch.zeros_like(constant_O[name])
            link = link_from.get(name)
            if link is not None:
                after = found[link.reader]
                varies_O = after.read_O & ~after.constant_O
                read_I = (reads_OI[link.reader] & varies_O[:, None]).any(0)
                cut_I = torch.zeros_like(read_I)
                shown_I = inputs[link.reader].shown_I
                cut_I[shown_I] = _reads_padding(modules[link.reader], inputs[link.reader], varies_O).any(0)
                read_O = read_I.view(-1, link.features_per_channel).any(1)
                cut_O = cut_I.view(-1, link.features_per_channel).any(1)
            found[name] = LayerSparsity(constant_O[name], bias_O[name], value_O[name], read_O, cut_O)
        return {name: found[name] for name in modules}


def taps_on_padding(module: nn.Module) -> torch.Tensor:
    """Taps of the kernel, (K,), that can fall on the zero padding of a convolution at some position or size.

    Tap t reads input position stride * output - padding + dilation * t. It stays inside the image everywhere
    when padding_before <= dilation * t <= dilation * (kernel - 1) - padding_after, as the middle of a padded
    3x3 does.
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
        is_inside = (before <= offset) & (offset <= reach - after)
        inside = (inside[:, None] & is_inside).flatten()
    return ~inside if module.padding_mode == 'zeros' else torch.zeros_like(inside)


def _all_varying(num_inputs: int) -> _Inputs:
    return _Inputs(torch.zeros(num_inputs, dtype=torch.bool), torch.zeros(num_inputs, dtype=torch.float64))


def _reads(weight: torch.Tensor) -> torch.Tensor:
    """Does output O have any non-zero weight for input I? (O, I), on the CPU."""
    return (weight.flatten(2).abs().amax(2) if weight.ndim > 2 else weight).ne(0).cpu()


def _reads_padding(module: nn.Module, inputs: _Inputs, rows_O: torch.Tensor) -> torch.Tensor:
    """Outputs `rows_O` by inputs `inputs.shown_I`: does a tap that can fall on the padding read the input?"""
    taps_K = taps_on_padding(module)
    if not (taps_K.any() and inputs.shown_I.any() and rows_O.any()):
        return torch.zeros(int(rows_O.sum()), int(inputs.shown_I.sum()), dtype=torch.bool)
    return (_part(module, rows_O, inputs.shown_I).ne(0).cpu() & taps_K).any(2)


def _constants(
    module: nn.Module, reads_OI: torch.Tensor, inputs: _Inputs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which outputs are constant, (O,), and their values before any activation, float64 and 0 elsewhere."""
    constant_O = ~(reads_OI & ~inputs.constant_I).any(1)
    if constant_O.any():
        constant_O[constant_O.clone()] = ~_reads_padding(module, inputs, constant_O).any(1)
    bias_O = torch.zeros(len(constant_O), dtype=torch.float64)
    if module.bias is not None:
        bias_O += torch.where(constant_O, module.bias.double().cpu(), 0.0)
    if constant_O.any() and inputs.shown_I.any():
        summed = _part(module, constant_O, inputs.shown_I).double().sum(2).cpu()
        bias_O[constant_O] += summed @ inputs.value_I[inputs.shown_I]
    return constant_O, bias_O


def _part(module: nn.Module, rows_O: torch.Tensor, columns_I: torch.Tensor) -> torch.Tensor:
    """The weights of the given outputs for the given inputs, (rows, columns, K)."""
    device = module.weight.device
    part = module.weight.index_select(1, columns_I.nonzero()[:, 0].to(device))  # these are few
    part = part.index_select(0, rows_O.nonzero()[:, 0].to(device))
    return part.flatten(2) if part.ndim > 2 else part[:, :, None]
