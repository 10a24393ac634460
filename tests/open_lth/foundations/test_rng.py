import random

import numpy as np
import torch

from open_lth.foundations import rng


def draw():
    return [
        torch.rand(1).item(),
        torch.randn(3).tolist(),
        np.random.randn(),
        np.random.randn(),
        random.random(),
        random.gauss(0, 1),
    ]


def test_torch_draws_equal_those_after_a_manual_seed():
    torch.manual_seed(7)
    expected = torch.rand(3)
    rng.seed_everything(7)
    assert torch.equal(torch.rand(3), expected)


def test_a_restored_state_repeats_the_draws_of_all_generators(tmp_path):
    rng.seed_everything(3)
    draw()
    np.random.randn(), random.gauss(0, 1)  # an odd number: both generators keep a second value in reserve
    torch.save(rng.get_rng_state(), tmp_path / 'state')
    first = draw()
    assert draw() != first
    rng.set_rng_state(torch.load(tmp_path / 'state', weights_only=True))
    assert draw() == first


def test_draws_inside_a_preserving_block_have_no_effect():
    rng.seed_everything(3)
    expected = draw()
    rng.seed_everything(3)
    with rng.preserve_rng_state():
        draw()
    assert draw() == expected


def test_derived_seeds_depend_on_the_names():
    assert rng.derive_seed('a', 1) == rng.derive_seed('a', 1)
    seeds = {rng.derive_seed(*names) for names in [('a', 1), ('a', 2), ('b', 1), ('a',), ('ab',)]}
    assert len(seeds) == 5 and all(0 <= seed < 2**31 for seed in seeds)
