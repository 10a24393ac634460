"""The rounds that all methods share: score what is left, remove the lowest, repeat."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
import copy
from dataclasses import replace

import torch

from dnnshifter_ext.methods.unstructured.schedule import remaining
from dnnshifter_ext.methods.unstructured.select import select
from dnnshifter_ext.methods.unstructured.setting import Setting
from open_lth.foundations.rng import derive_seed
from open_lth.models.base import Model
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel

Score = Callable[[Model, Mask, Setting], Mapping[str, torch.Tensor]]


def prune(
    model: Model, score: Score, setting: Setting, num_kept: int, *, schedule: str = 'one_shot', num_rounds: int = 1,
    mask: Mask | None = None, exempt: Collection[str] = (),
) -> Mask:
    """The mask that leaves exactly num_kept prunable weights, on the CPU; the model is not changed.

    At initialisation the model is untrained; after training it is trained; pruning goes on from `mask` if there is one.
    exempt: layers that keep what they have, and count. In round t > 0 the seed is derived from the setting's and t.
    Raises ValueError when an exempt layer does not exist, or when the others would have no weight left.
    """
    device = next(model.parameters()).device
    mask = Mask({name: keep.to(device) for name, keep in (mask or Mask.ones_like(model)).items()})
    unknown = sorted(set(exempt) - set(mask))
    if unknown:
        raise ValueError(f'no prunable layer is called {", ".join(unknown)}. There are: {", ".join(mask)}')
    num_exempt = sum(int(mask[name].count_nonzero()) for name in exempt)
    if num_kept <= num_exempt:
        raise ValueError(f'{num_kept} weights would stay, which leaves none for the layers that are pruned' + (
            f' ({num_exempt} are in exempt layers)' if exempt else ''))
    for t, num_left in enumerate(remaining(schedule, mask.num_kept, num_kept, num_rounds)):
        num_remove = mask.num_kept - num_left
        if num_remove:
            masked = PrunedModel(copy.deepcopy(model), mask).model
            scores = score(masked, mask, replace(setting, seed=derive_seed(setting.seed, t) if t else setting.seed))
            candidates = {name: keep for name, keep in mask.items() if name not in exempt}
            mask = Mask({**mask, **select(scores, candidates, num_remove)})
    return Mask({name: keep.cpu() for name, keep in mask.items()})
