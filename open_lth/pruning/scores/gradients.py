"""Gradients with respect to the prunable weights, which several scores need."""

import torch


def prunable_parameters(model):
    """name -> parameter, in the model's order."""
    parameters = dict(model.named_parameters())
    return {name: parameters[name].requires_grad_() for name in model.prunable_layer_names}


def gradients(output, parameters, **kwargs):
    """name -> d output / d parameter (zero where the output does not depend on it)."""
    found = torch.autograd.grad(output, list(parameters.values()), allow_unused=True, **kwargs)
    return {name: torch.zeros_like(parameter) if gradient is None else gradient
            for (name, parameter), gradient in zip(parameters.items(), found)}


def mean_over_batches(model, loader, score_batch):
    """The mean of score_batch(inputs, labels), a dict of tensors, weighted by the size of the batches; train mode."""
    model.train()
    totals, num_examples = {}, 0
    for inputs, labels in loader:
        num_examples += len(labels)
        for name, tensor in score_batch(inputs, labels).items():
            totals[name] = totals.get(name, 0) + tensor * len(labels)
    return {name: total / num_examples for name, total in totals.items()}
