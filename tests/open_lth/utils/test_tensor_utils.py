import pytest
import torch

from open_lth.utils.tensor_utils import perm, shuffle_state_dict, shuffle_tensor, unvectorize, vectorize


@pytest.fixture
def state():
    return {'b': torch.arange(6.).reshape(2, 3), 'a': torch.arange(10., 14.)}


def test_vectors_are_in_sorted_key_order(state):
    assert vectorize(state).tolist() == [10, 11, 12, 13, 0, 1, 2, 3, 4, 5]


def test_unvectorize_is_the_inverse(state):
    back = unvectorize(vectorize(state), state)
    assert sorted(back) == ['a', 'b'] and all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize('vector', [torch.zeros(9), torch.zeros(11), torch.zeros(4), torch.zeros(0),
                                    torch.zeros(10, 1), torch.tensor(0.)])
def test_vectors_of_another_size_are_refused(state, vector):
    with pytest.raises(ValueError):
        unvectorize(vector, state)


@pytest.mark.parametrize('seed', [None, 0, 1])
def test_permutations_are_repeatable_and_leave_the_global_generator_alone(seed):
    torch.manual_seed(5)
    first = perm(50, seed)
    assert sorted(first.tolist()) == list(range(50))
    after = torch.rand(1)
    torch.manual_seed(6)
    assert torch.equal(perm(50, seed), first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_no_seed_is_torchs_fixed_default_seed():
    assert perm(10).tolist() == perm(10, torch.Generator().initial_seed()).tolist()


def test_shuffles_keep_entries_and_shapes(state):
    shuffled = shuffle_tensor(state['b'], 0)
    assert shuffled.shape == (2, 3) and sorted(shuffled.reshape(-1).tolist()) == [0, 1, 2, 3, 4, 5]


def test_the_ith_tensor_is_shuffled_with_seed_plus_i(state):
    shuffled = shuffle_state_dict(state, 4)
    assert list(shuffled) == ['a', 'b']
    assert torch.equal(shuffled['a'], shuffle_tensor(state['a'], 4))
    assert torch.equal(shuffled['b'], shuffle_tensor(state['b'], 5))
