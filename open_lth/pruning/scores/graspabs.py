"""The magnitude of the GraSP score (Frankle et al., 2021)."""

from open_lth.pruning.scores import grasp


def score(model, loader, *, seed):
    """|w * Hg|."""
    return {name: tensor.abs() for name, tensor in grasp.score(model, loader, seed=seed).items()}
