"""What holds for every registered method, and for the pipeline they share."""

import copy

import pytest
import torch

from dnnshifter_ext.methods.unstructured.pipeline import prune
from dnnshifter_ext.methods.unstructured.registry import METHODS, find, known, parse_options
from dnnshifter_ext.methods.unstructured.select import empty_layers
from open_lth.foundations.errors import UserError
from open_lth.pruning.mask import Mask
from tests.dnnshifter_ext.methods.unstructured import small
from tests.helpers import same_state, state_of

every_method = pytest.mark.parametrize('name', [*METHODS, 'snip3', 'grasp3', 'graspabs3'])
NUM_WEIGHTS = 310


def pruned(name, num_kept=100, model=None, seed=0, **how):
    return prune(model or small.convnet(), find(name).score, small.setting(6, 2, 6, 6, seed=seed), num_kept, **how)


def half_mask():
    """Half of each layer is pruned already."""
    generator = torch.Generator().manual_seed(5)
    return Mask({name: torch.randint(2, tensor.shape, generator=generator).float()
                 for name, tensor in Mask.ones_like(small.convnet()).items()})


@every_method
@pytest.mark.parametrize('schedule, num_rounds', [('one_shot', 1), ('linear', 3), ('exponential', 4)])
def test_exactly_so_many_weights_stay(name, schedule, num_rounds):
    mask = pruned(name, 37, schedule=schedule, num_rounds=num_rounds)
    assert (mask.num_kept, mask.num_total) == (37, NUM_WEIGHTS)


@every_method
def test_dead_stays_dead(name):
    before = half_mask()
    after = pruned(name, before.num_kept - 30, mask=before, schedule='exponential', num_rounds=3)
    assert after.num_kept == before.num_kept - 30
    assert all((after[layer] <= before[layer]).all() for layer in before)


@every_method
def test_seed_alone_decides(name):
    """Whatever the global generators hold; and they are left as they were."""
    masks = []
    for state in (1, 2):
        model = small.convnet()
        torch.manual_seed(state)
        before = torch.get_rng_state()
        masks.append(pruned(name, model=model, schedule='exponential', num_rounds=2))
        assert torch.equal(torch.get_rng_state(), before)
    assert same_state(*masks)


@every_method
def test_another_seed_gives_another_mask_unless_nothing_is_drawn(name):
    same = same_state(pruned(name, seed=1), pruned(name, seed=2))
    assert same == (name in ('magnitude', 'synflow'))


@every_method
def test_the_model_is_not_touched(name):
    model = small.convnet().eval()
    model[1].bias.requires_grad_(False)
    before, kinds = state_of(model), [type(module) for module in model.modules()]
    pruned(name, model=model)
    assert same_state(state_of(model), before) and kinds == [type(module) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules()) and not model[1].bias.requires_grad


@every_method
def test_exempt_layers_keep_what_they_have_and_count(name):
    mask = pruned(name, 60, exempt=['8.weight'])
    assert mask['8.weight'].all() and mask.num_kept == 60


def test_magnitude_after_training_removes_a_layer_of_tiny_weights_and_names_it():
    model = small.convnet()
    model[3].weight.data *= 1e-4
    mask = pruned('magnitude', 50, model=model)
    assert empty_layers(mask) == ['3.weight']


@pytest.mark.parametrize('num_kept, exempt, expected', [
    (0, (), '0 weights would stay'), (40, ['8.weight'], r'\(40 are in exempt layers\)'), (5, ['fc'], 'no prunable'),
    (311, (), '311 weights cannot stay where 310')])
def test_impossible_requests_are_refused(num_kept, exempt, expected):
    with pytest.raises(ValueError, match=expected):
        pruned('magnitude', num_kept, exempt=exempt)


def test_rounds_score_the_network_that_is_left():
    seen = []

    def score(model, mask, setting):
        seen.append((mask.num_kept, sum(int(model.get_parameter(name).count_nonzero()) for name in mask), setting.seed))
        return find('magnitude').score(model, mask, setting)

    prune(small.convnet(), score, small.setting(1, 2, 6, 6), 31, schedule='exponential', num_rounds=2)
    assert [(kept, alive) for kept, alive, _ in seen] == [(310, 310), (98, 98)]
    assert seen[0][2] == 0 != seen[1][2], 'each round draws anew'


def test_masks_are_nested_over_the_rounds_of_one_run():
    model, masks = small.convnet(), []
    for num_kept in (200, 100, 50):
        masks.append(pruned('snip', num_kept, model=copy.deepcopy(model), mask=masks[-1] if masks else None))
    assert all((after[name] <= before[name]).all() for before, after in zip(masks, masks[1:]) for name in before)


# ---- names and options

def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(UserError, match='no such --strategy: nope. Known: .*ntk_sap.*snipN'):
        find('nope')
    assert all(name in known() for name in METHODS)


def test_options_are_those_of_the_score():
    assert parse_options(METHODS['prospr'], 'num_steps=1, first_order=1,lr=0.5') == dict(
        num_steps=1, lr=0.5, momentum=0.0, first_order=True)
    assert parse_options(METHODS['ntk_sap'], None) == dict(num_draws=5, epsilon=0.01)


@pytest.mark.parametrize('text, expected', [
    ('steps=1', 'no steps. Known: num_steps'), ('num_steps', "num_steps is a whole number .*not ''"),
    ('num_steps=0.5', 'num_steps is a whole number'), ('first_order=yes', 'first_order is 0 or 1'),
    ('lr=nan', 'lr is a number'), ('num_steps=-1', 'num_steps is')])
def test_wrong_options_are_refused(text, expected):
    with pytest.raises(UserError, match=expected):
        parse_options(METHODS['prospr'], text)
