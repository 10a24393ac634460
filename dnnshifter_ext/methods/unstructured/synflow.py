"""SynFlow (Tanaka et al.: Pruning neural networks without any data by iteratively conserving synaptic flow. 2020)."""

from __future__ import annotations

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.scores import synflow


def score(model: Model, mask: Mask, setting: Setting, *, zero_bias: bool = False) -> dict[str, torch.Tensor]:
    """|w * dR/dw|, in float64: open_lth's score, R = sum of the outputs for an all-ones input through |parameters|.

    The conservation law (the scores of each layer sum to R) holds layer by layer without biases only; zero_bias leaves
    them out. Of the batches only the shape of an image is used.
    """
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.zero_()  # as at initialisation; a trained mean is subtracted, and flow is positive
            if zero_bias and getattr(module, 'bias', None) is not None:
                module.bias.zero_()
    return synflow.score(model, setting.batches, seed=setting.seed)
