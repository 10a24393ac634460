"""ProsPr (Alizadeh et al.: Prospect pruning: finding trainable weights at initialization. ICLR 2022)."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores.gradients import gradients


def score(
    model: Model, mask: Mask, setting: Setting, *, num_steps: int = 3, lr: float = 0.1, momentum: float = 0.0,
    first_order: bool = False,
) -> dict[str, torch.Tensor]:
    """|dL/dc|: L is the loss after num_steps steps of SGD from weights w * c, at c = 1. With 0 steps this is SNIP.

    Each step, and the last loss, has a mini-batch of its own, in the order of the setting's (from the start again if
    they are too few). All trainable parameters move, pruned weights excepted. first_order does not differentiate
    through the steps' gradients, which saves their graphs.
    """
    batches = [setting.batches[k % len(setting.batches)] for k in range(num_steps + 1)]
    use_batch_statistics(model)
    # The mask enters at the start only. Its entries are 1, or 0 for what an earlier round pruned.
    connections = {name: mask[name].to(tensor.dtype).requires_grad_()
                   for name, tensor in model.named_parameters() if name in mask}
    weights = {name: tensor.detach() * connections[name] if name in connections else tensor.detach().requires_grad_()
               for name, tensor in model.named_parameters() if name in connections or tensor.requires_grad}

    def loss(step: int) -> torch.Tensor:
        inputs, labels = batches[step]
        return model.loss_criterion(functional_call(model, weights, inputs), labels)

    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for step in range(num_steps):
        gradient = gradients(loss(step), weights, create_graph=not first_order)
        velocity = {name: momentum * velocity[name] + gradient[name] for name in weights}
        weights = {name: tensor - lr * velocity[name] * mask.get(name, 1) for name, tensor in weights.items()}
    return {name: gradient.abs() for name, gradient in gradients(loss(num_steps), connections).items()}


def use_batch_statistics(model: nn.Module) -> None:
    """Train mode, in which no batch norm writes into its buffers between two passes that share a graph."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.track_running_stats = False
