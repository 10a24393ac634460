"""GraSP (Wang, Zhang, Grosse: Picking winning tickets before training by preserving gradient flow. ICLR 2020)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores.gradients import gradients, prunable_parameters


def score(model: Model, mask: Mask, setting: Setting, *, temperature: float = 200.0) -> dict[str, torch.Tensor]:
    """w * Hg: g and H are gradient and Hessian of the mean loss over all batches, logits divided by the temperature.

    Removing w changes |g|^2 by about -2 w (Hg), so the paper removes the largest -w (Hg): those are the lowest here.
    (open_lth's `grasp` has the opposite sign, and takes g of each batch alone.) Two passes over the same batches.
    """
    parameters = prunable_parameters(model)
    model.train()
    num_examples = sum(len(labels) for _, labels in setting.batches)

    def batch_gradients(**kwargs: bool) -> Iterator[dict[str, torch.Tensor]]:
        for inputs, labels in setting.batches:
            loss = model.loss_criterion(model(inputs) / temperature, labels) * (len(labels) / num_examples)
            yield gradients(loss, parameters, **kwargs)

    gradient = _sum(parameters, batch_gradients())
    hessian_gradient = _sum(parameters, (
        gradients(sum((gradient[name] * of_batch[name]).sum() for name in parameters), parameters)
        for of_batch in batch_gradients(create_graph=True)))
    return {name: weight.detach() * hessian_gradient[name] for name, weight in parameters.items()}


def _sum(like: dict[str, torch.Tensor], terms: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    total = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    for term in terms:
        total = {name: total[name] + term[name] for name in total}
    return total
