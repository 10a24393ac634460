"""Scores and masks of all one-shot strategies, the examples they look at, and the permutations they use."""

import copy
import re

import pytest
import torch

from open_lth.foundations.hparams import DatasetHparams
from open_lth.models import registry as models
from open_lth.platforms import platform
from open_lth.pruning import oneshot
from open_lth.pruning.scores import examples
from open_lth.pruning.scores import registry as scores
from open_lth.utils.tensor_utils import perm, shuffle_state_dict
from tests.conftest import make_platform
from tests.helpers import load_golden, mask_fingerprint, weight_fingerprint

GOLDEN = load_golden('fork_scores')
EXACT = ('random', 'magnitude')  # sums of nothing: the same bits everywhere


@pytest.mark.parametrize('golden', GOLDEN['results'],
                         ids=lambda golden: f'{golden["model"]}-{golden["strategy"]}')
def test_selected_examples_scores_and_masks(golden, request):
    fixture = 'fashion_as_mnist' if golden['model'].startswith('mnist') else 'synthetic_cifar_test256'
    platform._PLATFORM = make_platform(dataset_root=request.getfixturevalue(fixture))
    defaults, named = models.get_default_hparams(golden['model']), scores.get(golden['strategy'])
    torch.manual_seed(golden['model_torch_manual_seed'])
    model, loader, seed = models.get(defaults.model_hparams), None, golden['strategy_seed']
    if named.examples_per_class:
        loader = examples.select(defaults.dataset_hparams, named.examples_per_class, seed)

    def score(model):
        return named.function(model, loader, seed=seed)

    check_selection(loader, golden['selection'])
    check_scores(score(copy.deepcopy(model)), golden['scores'], exact=golden['strategy'] in EXACT)
    for case, expected in golden['masks'].items():
        fraction, highest, iterations = re.fullmatch(
            r'fraction=(\S+) prune_highest=(\S+) iterations=(\S+)', case).groups()
        mask = oneshot.prune(model, score, float(fraction), int(iterations), highest == 'True')
        # Scores of the next round depend on the last round's mask, so rounding differences grow.
        check_mask(mask, expected, golden['strategy'] in EXACT, share=1e-3 if iterations == '1' else 5e-3)


def check_selection(loader, golden):
    if golden is None:
        assert loader is None
        return
    assert len(loader.dataset) == golden['n_selected']
    assert loader.dataset._labels[:32].tolist() == golden['labels'][:32]
    batches = [labels.tolist() for _, labels in loader]
    assert len(batches) == golden['batches']
    assert batches[0][:32] == golden['first_batch_labels'][:32]


def check_scores(actual, golden, exact):
    assert sorted(actual) == sorted(golden)
    for name, (dtype, shape, total, absolute, first) in golden.items():
        fingerprint = weight_fingerprint(actual[name])
        assert str(actual[name].dtype) == dtype and fingerprint[0] == shape
        if exact:
            assert fingerprint[3] == first, name
        assert fingerprint[2] == pytest.approx(absolute, rel=1e-4), name
        assert fingerprint[1] == pytest.approx(total, abs=1e-3 * absolute), name


def check_mask(mask, golden, exact, share):
    assert list(mask) == list(golden) == sorted(mask)
    kept = {name: int(tensor.count_nonzero()) for name, tensor in mask.items()}
    assert sum(kept.values()) == sum(golden_kept for _, golden_kept, _ in golden.values())
    for name, (_, golden_kept, digest) in golden.items():
        if exact:
            assert mask_fingerprint(mask[name])[1:] == [golden_kept, digest], name
        assert abs(kept[name] - golden_kept) <= max(8, share * mask[name].numel()), name


@pytest.mark.parametrize('n, seed, order', GOLDEN['tensor_utils']['perm'])
def test_permutations(n, seed, order):
    assert perm(n, seed).tolist() == order


@pytest.mark.parametrize('seed, expected', GOLDEN['tensor_utils']['shuffle_state_dict'])
def test_shuffled_state_dicts(seed, expected):
    state = {'b': torch.arange(6).reshape(2, 3), 'a': torch.arange(10, 14)}
    shuffled = shuffle_state_dict(state, seed)
    assert {name: tensor.tolist() for name, tensor in shuffled.items()} == expected
    assert list(shuffled) == ['a', 'b']


@pytest.mark.parametrize(
    'strategy', ['nope', 'snip', 'snip0', 'grasp0', 'graspabs00', 'snip-1', 'random3', '']
)
def test_unknown_strategies_are_refused(strategy):
    """Fixed: snip0 and its like gave scores that are not numbers, and an empty mask."""

    with pytest.raises(ValueError):
        scores.get(strategy)


def test_subsampled_data_can_be_scored(local_platform):
    """Fixed: the fork raises IndexError together with a subsample."""

    loader = examples.select(DatasetHparams('digits', 50, subsample_fraction=0.2), 3, seed=0)
    assert torch.bincount(torch.cat([labels for _, labels in loader])).tolist() == [3] * 10
