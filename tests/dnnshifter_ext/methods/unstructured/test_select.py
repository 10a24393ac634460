"""Which weights go, given the scores."""

from hypothesis import given, settings, strategies
import pytest
import torch

from dnnshifter_ext.methods.unstructured.select import empty_layers, select


def test_by_hand():
    scores = {'b': torch.tensor([[3., 1.], [2., 9.]]), 'a': torch.tensor([2., 0., 5.])}
    mask = {'b': torch.tensor([[1., 1.], [1., 0.]]), 'a': torch.tensor([1., 0., 1.])}
    selected = select(scores, mask, 2)
    # Alive are 3, 1, 2 in b and 2, 5 in a; of the two 2s the one in a goes, as a comes first. 9 and 0 are pruned.
    assert selected['b'].tolist() == [[1, 0], [1, 0]] and selected['a'].tolist() == [0, 0, 1]


@settings(deadline=None, max_examples=60)
@given(strategies.integers(0, 2**31), strategies.integers(1, 12))
def test_selection_is_a_stable_sort_of_what_is_alive(seed, num_values):
    """Few different values: most scores are ties."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.randint(num_values, (7, 5), generator=generator).double() for name in 'ab'}
    mask = {name: torch.randint(2, (7, 5), generator=generator).float() for name in 'ab'}
    alive = torch.cat([mask[name].flatten() for name in 'ab']).nonzero().squeeze(1)
    num_remove = int(torch.randint(len(alive) + 1, (), generator=generator))
    order = torch.cat([scores[name].flatten() for name in 'ab'])[alive].argsort(stable=True)
    expected = torch.zeros(70)
    expected[alive[order[num_remove:]]] = 1
    selected = select(scores, mask, num_remove)
    assert torch.equal(torch.cat([selected[name].flatten() for name in 'ab']), expected)


def test_input_mask_is_not_changed():
    mask = {'a': torch.ones(4)}
    select({'a': torch.arange(4.)}, mask, 2)
    assert mask['a'].all()


@pytest.mark.parametrize('num_remove', [-1, 4])
def test_more_than_there_is_cannot_go(num_remove):
    with pytest.raises(ValueError, match='of 3 remaining'):
        select({'a': torch.rand(4)}, {'a': torch.tensor([1., 1, 1, 0])}, num_remove)


def test_scores_that_are_not_numbers_are_refused_by_name_unless_pruned():
    scores = {'good': torch.rand(3), 'bad': torch.tensor([1., float('nan')])}
    with pytest.raises(ValueError, match='of bad are not numbers'):
        select(scores, {'good': torch.ones(3), 'bad': torch.ones(2)}, 1)
    select(scores, {'good': torch.ones(3), 'bad': torch.tensor([1., 0.])}, 1)


def test_empty_layers_are_named_in_order():
    assert empty_layers({'b': torch.zeros(3), 'c': torch.ones(1), 'a': torch.zeros(2, 2)}) == ['b', 'a']
