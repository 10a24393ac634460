"""SynFlow (Tanaka et al., 2020): synaptic flow, without looking at the images."""

import torch

from open_lth.pruning.scores.gradients import gradients, prunable_parameters


def score(model, loader, *, seed):
    """|w * dR/dw| in float64, R = sum of the outputs for an all-ones input through |parameters| (equation 3).

    One example of the loader tells the input's shape.
    """
    inputs, _ = next(iter(loader))
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    parameters = prunable_parameters(model)
    flow = gradients(model(inputs.new_ones(1, *inputs.shape[1:], dtype=torch.float64)).sum(), parameters)
    return {name: (parameter.detach() * flow[name]).abs() for name, parameter in parameters.items()}
