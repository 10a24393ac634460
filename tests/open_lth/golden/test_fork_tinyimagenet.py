"""Both Tiny ImageNet variants on the stand-in folder: order, labels and transformed images."""

import hashlib

import pytest
import torch

from open_lth.datasets import registry
from open_lth.foundations.hparams import DatasetHparams
from tests.conftest import make_platform
from tests.helpers import load_golden, tensor_bytes

GOLDEN = load_golden('fork_tinyimagenet_dataset')
ROWS = 'rows(path,label,shape,sum,sha16) in served order, torch.manual_seed(0) before the first'
CASES = [case for case in GOLDEN if case.startswith('tinyimagenet')]


@pytest.mark.parametrize('case', CASES)
def test_served_items(case, tiny_imagenet):
    def check():
        hparams = DatasetHparams(case.split()[0], 2, do_not_augment='no augment' in case)
        dataset = registry.get(hparams, train='train' in case).dataset
        assert len(dataset) == len(GOLDEN[case][ROWS])
        torch.manual_seed(0)
        for index, (path, label, shape, total, digest) in enumerate(GOLDEN[case][ROWS]):
            image, actual_label = dataset[index]
            assert str(dataset._examples[index]) == str(tiny_imagenet / path)
            assert (int(actual_label), list(image.shape)) == (label, shape)
            assert image.double().sum().item() == pytest.approx(total, rel=1e-5)
            assert hashlib.sha256(tensor_bytes(image)).hexdigest()[:16] == digest

    make_platform(tinyimagenet_root=tiny_imagenet).run_job(check)


@pytest.mark.parametrize('name', ['tinyimagenet', 'tinyimagenet2'])
def test_counts(name):
    assert (
        registry.iterations_per_epoch(DatasetHparams(name, 256)) == GOLDEN['iterations_per_epoch_batch_256']
    )
    assert registry.num_classes(DatasetHparams(name, 256)) == GOLDEN['num_classes']
