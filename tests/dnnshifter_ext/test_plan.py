import dataclasses
import json

import pytest

from dnnshifter_ext.plan import Constants, LayerPlan, RemovalPlan, Removed
from dnnshifter_ext.removal import plan_removal
from tests.dnnshifter_ext import nets

BY_HAND = RemovalPlan((
    LayerPlan('a', 4, 3, keep_outputs=(1, 3), keep_inputs=(0, 1, 2), removed=(Removed('unread', (0, 2)),),
              emptied=Constants((1,), (0.1,))),
    LayerPlan('b', 2, 4, keep_outputs=(0, 1), keep_inputs=(1, 3), folded=Constants((2,), (1 / 3,)),
              merged=Constants((0, 1), (1e-300, -0.1)), carrier=1, barrier='it feeds the output')))


def test_json_round_trip_is_exact():
    real = plan_removal(nets.fused_and_structure(nets.sparsify(nets.VGG(), density=0.1))[1])
    assert real.num_removed > 0
    for plan in (BY_HAND, real):
        assert RemovalPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
        assert RemovalPlan.from_dict(plan.to_dict()) == plan


def test_counts():
    assert [layer.num_removed for layer in BY_HAND.layers] == [2, 0]
    assert BY_HAND.num_removed == 2


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BY_HAND.layers = ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        BY_HAND.layers[0].carrier = 1
    assert hash(BY_HAND) == hash(RemovalPlan(BY_HAND.layers))
