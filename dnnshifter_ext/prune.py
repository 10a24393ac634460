"""Module 4: carry out a removal plan on all layers in one batch (Algorithm 2 of the paper)."""

# O = output channels, I = input columns, K = taps of the kernel (all dimensions flattened)

from __future__ import annotations

import torch
from torch import fx, nn

from dnnshifter_ext import ops
from dnnshifter_ext.graph import rebuild
from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan


def apply_plan(graph_module: fx.GraphModule, plan: RemovalPlan) -> fx.GraphModule:
    """A new, smaller model that computes what `graph_module` (untouched) computes.

    The sums of folded and merged constants are taken in float64 and stored in the layer's own type.
    Raises ValueError when the plan was made for a model of other layers or sizes.
    """
    narrow: dict[str, nn.Module] = {}
    modules = dict(graph_module.named_modules())
    for layer_plan in plan.layers:
        name, module = layer_plan.layer, modules.get(layer_plan.layer)
        if module is None or not ops.is_conv_or_linear(module):
            raise ValueError(f"the plan is for another model: there is no conv or linear layer '{name}'")
        size, planned = tuple(module.weight.shape[:2]), (layer_plan.num_outputs, layer_plan.num_inputs)
        if size != planned:
            raise ValueError(
                f"the plan is for another model: '{name}' has {size} outputs and inputs, not {planned}")
        with torch.no_grad():
            narrow[name] = narrow_layer(module, layer_plan)
    return rebuild(graph_module, narrow)


def narrow_layer(module: nn.Module, plan: LayerPlan) -> nn.Module:
    """A new conv or linear layer with the channels, weights and biases of the plan; contiguous tensors."""
    device, dtype = module.weight.device, module.weight.dtype
    keep_O, keep_I = (torch.tensor(keep, device=device) for keep in (plan.keep_outputs, plan.keep_inputs))
    rows_OI = module.weight.detach().index_select(0, keep_O)
    weight = rows_OI.index_select(1, keep_I)
    needs_bias = module.bias is not None or plan.folded.channels or any(plan.emptied.values)
    bias_O = torch.zeros(len(keep_O), dtype=torch.float64, device=device)
    if module.bias is not None:
        bias_O += module.bias.detach().index_select(0, keep_O)
    if plan.folded.channels:
        columns, values = _tensors(plan.folded, device)
        bias_O += _taps(rows_OI.index_select(1, columns)).sum(2) @ values
    if plan.carrier is not None:
        columns, values = _tensors(plan.merged, device)
        ratios = values / plan.merged.values[plan.merged.channels.index(plan.carrier)]
        summed_OK = torch.einsum('oik,i->ok', _taps(rows_OI.index_select(1, columns)), ratios)
        position = plan.keep_inputs.index(plan.carrier)
        weight[:, position] = summed_OK.reshape(weight[:, position].shape).to(dtype)
    if plan.emptied.channels:
        channels, values = _tensors(plan.emptied, device)
        positions = torch.searchsorted(keep_O, channels)
        weight[positions] = 0
        bias_O[positions] = values
    return ops.with_tensors(module, weight, bias_O.to(dtype) if needs_bias else None)


def _tensors(constants: Constants, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (torch.tensor(constants.channels, device=device),
            torch.tensor(constants.values, dtype=torch.float64, device=device))


def _taps(weight: torch.Tensor) -> torch.Tensor:
    """(O, I, *kernel) as (O, I, K) in float64."""
    return weight.double().reshape(*weight.shape[:2], -1)
