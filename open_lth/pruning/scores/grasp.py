"""GraSP (Wang et al., 2020): keeping the gradient flow after pruning."""

from open_lth.pruning.scores.gradients import gradients, mean_over_batches, prunable_parameters

_TEMPERATURE = 200


def score(model, loader, *, seed):
    """-w * Hg, averaged over the batches (section 4, algorithm 1, with its temperature).

    The paper prunes the HIGHEST scores (`--prune_highest`); by default the lowest go.
    """
    parameters = prunable_parameters(model)

    def loss_gradients(inputs, labels, **kwargs):
        return gradients(model.loss_criterion(model(inputs) / _TEMPERATURE, labels), parameters, **kwargs)

    def score_batch(inputs, labels):
        detached = loss_gradients(inputs, labels)
        with_graph = loss_gradients(inputs, labels, create_graph=True)
        flow = sum((detached[name] * with_graph[name]).sum() for name in parameters)
        hessian_gradient = gradients(flow, parameters)
        return {name: -parameter.detach() * hessian_gradient[name] for name, parameter in parameters.items()}

    return mean_over_batches(model, loader, score_batch)
