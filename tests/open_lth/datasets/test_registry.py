import pytest

from open_lth.datasets import registry
from open_lth.foundations.hparams import DatasetHparams
from open_lth.platforms import platform
from tests.conftest import make_platform, save_noise


def digits(**options):
    return DatasetHparams('digits', 100, **options)


def test_known_names():
    assert {'mnist', 'fashion_mnist', 'cifar10', 'imagenet', 'tinyimagenet', 'digits'} <= set(
        registry.registered_datasets)


def test_sizes_of_the_loaders(local_platform):
    train, test = registry.get(digits()), registry.get(digits(), train=False)
    assert (len(train.dataset), train.iterations_per_epoch) == (1437, 15)
    assert (len(test.dataset), test.iterations_per_epoch) == (360, 4)
    assert registry.iterations_per_epoch(digits()) == 15


def test_options_for_training_leave_the_test_set_alone(local_platform):
    options = dict(subsample_fraction=0.1, random_labels_fraction=1.0, blur_factor=2)
    plain, test = registry.get(digits(), train=False), registry.get(digits(**options), train=False)
    assert len(test.dataset) == 360
    assert (test.dataset._labels == plain.dataset._labels).all()


def test_rotation_holds_for_both_sets(local_platform):
    for train in (True, False):
        labels = registry.get(digits(unsupervised_labels='rotation'), train=train).dataset._labels
        assert set(labels.tolist()) == {0, 1, 2, 3}


def test_no_transformation_seed_means_seed_0(local_platform):
    def labels(**options):
        return registry.get(digits(random_labels_fraction=1.0, **options)).dataset._labels.tolist()

    assert labels() == labels(transformation_seed=0) != labels(transformation_seed=1)


def test_test_loaders_are_never_shuffled(local_platform):
    loader = registry.get(digits(), train=False)
    labels = [int(label) for _, batch in loader for label in batch]
    assert labels == loader.dataset._labels.tolist()


def test_augmentation_is_for_training_only(local_platform):
    assert registry.get(digits()).dataset._image_transforms
    assert not registry.get(digits(do_not_augment=True)).dataset._image_transforms
    assert not registry.get(digits(), train=False).dataset._image_transforms


@pytest.mark.parametrize('hparams', [
    DatasetHparams('nope', 10), DatasetHparams('digits', 0), DatasetHparams('digits', -5),
    digits(subsample_fraction=0.0), digits(subsample_fraction=1.5), digits(subsample_fraction=-0.1),
    digits(random_labels_fraction=2.0), digits(blur_factor=0), digits(unsupervised_labels='jigsaw')])
@pytest.mark.parametrize('function', [registry.get, registry.iterations_per_epoch, registry.num_classes])
def test_impossible_options_are_refused(local_platform, hparams, function):
    with pytest.raises(ValueError):
        function(hparams)


def test_worker_processes_serve_the_same_labels(local_platform):
    plain = [label for _, labels in registry.get(digits(), train=False) for label in labels.tolist()]
    platform._PLATFORM = make_platform(num_workers=2)
    assert [label for _, labels in registry.get(digits(), train=False) for label in labels.tolist()] == plain


@pytest.mark.parametrize('name', ['imagenet', 'tinyimagenet'])
def test_data_sets_of_files_say_which_folder_to_give(local_platform, name):
    with pytest.raises(ValueError, match=f'--{name}_root'):
        registry.get(DatasetHparams(name, 10))


def test_imagenet_labels_are_ranks_of_sorted_folders(tmp_path):
    """Fixed: OpenLTH lists files in the order of the file system, and with workers classes in any order."""

    for number, path in enumerate(['b/2.JPEG', 'b/1.jpeg', 'a/3.JPEG', 'a/note.txt', 'c/0.Jpeg']):
        file = tmp_path / 'train' / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('x') if path.endswith('txt') else save_noise(file, number)
    (tmp_path / 'train' / 'stray.JPEG').write_text('not a folder')

    def check():
        dataset = registry.get(DatasetHparams('imagenet', 2)).dataset
        names = [str(path).removeprefix(f'{tmp_path}/train/') for path in dataset._examples]
        assert names == ['a/3.JPEG', 'b/1.jpeg', 'b/2.JPEG', 'c/0.Jpeg']
        assert list(dataset._labels) == [0, 1, 1, 2]
        assert dataset[0][0].shape == (3, 224, 224)

    make_platform(imagenet_root=tmp_path).run_job(check)
