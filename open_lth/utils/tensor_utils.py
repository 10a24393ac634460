"""Flattening and shuffling of tensors and of dicts of tensors. Every shuffle has a private generator."""

import torch


def vectorize(state_dict):
    """All entries as one vector, in sorted key order."""
    return torch.cat([state_dict[key].reshape(-1) for key in sorted(state_dict)])


def unvectorize(vector, reference):
    """The inverse of `vectorize`, with the keys and shapes of `reference`; ValueError when the sizes do not match."""
    if vector.dim() != 1:
        raise ValueError(f'expected a vector, not a tensor of shape {tuple(vector.shape)}')
    keys = sorted(reference)
    sizes = [reference[key].numel() for key in keys]
    if sum(sizes) != vector.numel():
        raise ValueError(f'the vector has {vector.numel()} entries, the reference state {sum(sizes)}')
    return {key: part.reshape(reference[key].shape) for key, part in zip(keys, torch.split(vector, sizes))}


def perm(n, seed=None):
    """A permutation of 0..n-1 (int64, shape [n]). Without a seed it is a fixed one: torch's default seed is used."""
    generator = torch.Generator()
    if seed is not None:
        generator.manual_seed(seed)
    return torch.argsort(torch.normal(torch.zeros(n), torch.ones(n), generator=generator))


def shuffle_tensor(tensor, seed=None):
    """The same entries in the same shape, in another order."""
    return tensor.reshape(-1)[perm(tensor.numel(), seed)].reshape(tensor.shape)


def shuffle_state_dict(state_dict, seed=None):
    """Every tensor shuffled within itself: the i-th in sorted key order with seed + i."""
    return {key: shuffle_tensor(state_dict[key], None if seed is None else seed + i)
            for i, key in enumerate(sorted(state_dict))}
