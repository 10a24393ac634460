import numpy as np
from sklearn.datasets import load_digits

from open_lth.datasets import digits


def test_all_images_are_served_once():
    train, test = digits.Dataset.get_train_set(False), digits.Dataset.get_test_set()
    assert (len(train), len(test)) == (1437, 360)
    served = np.concatenate([train._examples, test._examples])[:, ::4, ::4, 0].reshape(-1, 64)
    original = np.rint(load_digits().data * 255 / 16)
    assert sorted(map(tuple, served.astype(int))) == sorted(map(tuple, original.astype(int)))


def test_every_class_is_in_both_sets():
    for dataset in (digits.Dataset.get_train_set(True), digits.Dataset.get_test_set()):
        assert set(dataset._labels.tolist()) == set(range(10))


def test_images_have_the_size_of_cifar10():
    image, label = digits.Dataset.get_test_set()[0]
    assert image.shape == (3, 32, 32) and 0 <= label < 10
    assert (image[0] == image[1]).all() and (image[:, 0, 0] == image[:, 3, 3]).all()


def test_split_does_not_depend_on_the_global_generators():
    np.random.seed(1)
    first = digits.Dataset.get_test_set()._labels.tolist()
    np.random.seed(2)
    assert digits.Dataset.get_test_set()._labels.tolist() == first
