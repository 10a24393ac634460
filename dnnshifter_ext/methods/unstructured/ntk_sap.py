"""NTK-SAP (Wang, Li, Sun: NTK-SAP: Improving neural network pruning by aligning training dynamics. ICLR 2023)."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.foundations.rng import preserve_rng_state
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores.gradients import gradients


def score(
    model: Model, mask: Mask, setting: Setting, *, num_draws: int = 5, epsilon: float = 0.01,
) -> dict[str, torch.Tensor]:
    """|dF/dm|, F = E |f(x; theta m) - f(x; (theta + delta) m)|^2, which is about epsilon^2 times the trace of the NTK.

    For every batch, num_draws times: theta anew from the initial distribution, x ~ N(0, 1), delta ~ N(0, epsilon^2).
    Of the batches only the shapes are used. Sums over examples and draws first, then takes the absolute value.
    Raises ValueError without draws or noise.
    """
    if num_draws < 1 or epsilon <= 0:
        raise ValueError(f'num_draws={num_draws}, epsilon={epsilon:g}: nothing is compared')
    keep = {name: mask[name].to(tensor.dtype) for name, tensor in model.named_parameters() if name in mask}
    total = {name: torch.zeros_like(m) for name, m in keep.items()}
    with preserve_rng_state():
        torch.manual_seed(setting.seed)
        for _ in range(num_draws):
            for inputs, _ in setting.batches:
                setting.initialise(model)
                variables = {name: m.clone().requires_grad_() for name, m in keep.items()}
                gradient = gradients(discrepancy(model, variables, torch.randn_like(inputs), epsilon), variables)
                total = {name: total[name] + gradient[name] for name in total}
    return {name: total[name].abs() * keep[name] for name in keep}


def discrepancy(model: nn.Module, keep: dict[str, torch.Tensor], inputs: torch.Tensor, epsilon: float) -> torch.Tensor:
    """F at the model's own weights for one draw of delta, summed over the inputs; differentiable in the mask `keep`.

    The twin differs in the masked weights only. Both normalise with the statistics that `inputs` have in the masked
    model, which are left in it. Draws delta from the global generator.
    """
    weights = {name: tensor.detach() for name, tensor in model.named_parameters() if name in keep}
    adopt_statistics(model, {name: weights[name] * keep[name].detach() for name in keep}, inputs)
    model.eval()
    outputs = functional_call(model, {name: weights[name] * keep[name] for name in keep}, inputs)
    twin = {name: (weights[name] + epsilon * torch.randn_like(weights[name])) * keep[name] for name in keep}
    return (outputs - functional_call(model, twin, inputs)).square().sum()


@torch.no_grad()
def adopt_statistics(model: nn.Module, weights: dict[str, torch.Tensor], inputs: torch.Tensor) -> None:
    """Makes the running statistics of every batch norm those of these inputs, with these weights in the model."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if norms:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = 1.0
        model.train()
        functional_call(model, weights, inputs)
