"""SNIP (Lee et al., 2019): connection sensitivity at initialization."""

from open_lth.pruning.scores.gradients import gradients, mean_over_batches, prunable_parameters


def score(model, loader, *, seed):
    """|w * dL/dw|, averaged over the batches (equation 3, without the normalisation, which changes no ranking)."""
    parameters = prunable_parameters(model)

    def score_batch(inputs, labels):
        gradient = gradients(model.loss_criterion(model(inputs), labels), parameters)
        return {name: (parameter.detach() * gradient[name]).abs() for name, parameter in parameters.items()}

    return mean_over_batches(model, loader, score_batch)
