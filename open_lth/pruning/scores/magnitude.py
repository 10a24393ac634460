"""Magnitude pruning (Han et al., 2015)."""


def score(model, loader, *, seed):
    """|w|."""
    state = model.state_dict()
    return {name: state[name].abs() for name in model.prunable_layer_names}
