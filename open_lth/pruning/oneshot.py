"""From scores to masks: a fraction of what remains goes, once or in several rounds."""

import copy
import math

import torch

from open_lth.foundations.errors import UserError
from open_lth.pruning.mask import Mask
from open_lth.utils.tensor_utils import unvectorize, vectorize


def prune_by_score(scores, mask, fraction, prune_highest=False):
    """The mask without `fraction` of its weights: those of the lowest (or highest) scores.

    OpenLTH compatibility: pruning the lowest, the weight at the threshold goes too (one more than asked). The result
    is in sorted key order.
    """
    keep, values = vectorize(mask), vectorize(scores)
    remaining = torch.sort(values[keep == 1]).values
    num_to_prune = math.ceil(float(keep.sum(dtype=torch.float64)) * fraction)
    if num_to_prune >= len(remaining):
        raise UserError(f'pruning {fraction:g} of the {len(remaining)} remaining weights leaves none')
    if prune_highest:
        survives = values < remaining[len(remaining) - num_to_prune]
    else:
        survives = values > remaining[num_to_prune]
    return Mask(unvectorize(torch.where(survives, keep, torch.zeros_like(keep)), mask))


def prune(model, score, fraction, iterations=1, prune_highest=False):
    """A mask that prunes `fraction` of the model's weights, in equal proportions over `iterations` rounds.

    score(model) -> {name: scores} may change the copy it is given: the unpruned weights times the mask so far.
    """
    mask = Mask.ones_like(model)
    per_round = 1 - (1 - fraction) ** (1 / iterations)
    if per_round > 0:
        for _ in range(iterations):
            masked = copy.deepcopy(model)
            with torch.no_grad():
                for name, parameter in masked.named_parameters():
                    if name in mask:
                        parameter.mul_(mask[name])
            mask = prune_by_score(score(masked), mask, per_round, prune_highest)
    return mask
