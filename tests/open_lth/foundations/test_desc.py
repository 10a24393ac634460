from dataclasses import dataclass
import hashlib

import pytest

from open_lth.foundations.desc import Desc
from open_lth.foundations.hparams import DatasetHparams, Hparams, ModelHparams, TrainingHparams
from open_lth.lottery.desc import LotteryDesc
from open_lth.pruning.sparse_global import PruningHparams
from open_lth.training.desc import TrainingDesc


@dataclass
class Bundle(Hparams):
    a: int = 1

    _name: str = 'Bundle'
    _description: str = 'One field.'


@dataclass
class TwoBundles(Desc):
    zebra: Bundle
    ant: Bundle
    inner: Desc = None

    @staticmethod
    def name_prefix():
        return 'two'

    @property
    def display(self):
        return ''


def training_desc(**training):
    return TrainingDesc(
        ModelHparams('mnist_lenet_10', 'kaiming_normal', 'uniform'),
        DatasetHparams('digits', 100),
        TrainingHparams('sgd', 0.1, '2ep', **training),
    )


def lottery_desc(**pretrain):
    train = training_desc()
    return LotteryDesc(train.model_hparams, train.dataset_hparams, train.training_hparams,
                       PruningHparams(pruning_strategy='sparse_global'), **pretrain)


def test_hash_is_the_md5_of_the_canonical_names_in_field_name_order():
    expected = hashlib.md5(b'Hparams();Hparams(a=3)').hexdigest()
    assert TwoBundles(zebra=Bundle(3), ant=Bundle()).hashname == f'two_{expected}'


def test_absent_bundles_and_nested_descs_are_not_hashed():
    desc = TwoBundles(zebra=Bundle(3), ant=Bundle(), inner=TwoBundles(Bundle(), Bundle()))
    assert desc.hashname == TwoBundles(zebra=Bundle(3), ant=Bundle()).hashname
    assert TwoBundles(zebra=Bundle(3), ant=None).hashname == 'two_' + hashlib.md5(b'Hparams(a=3)').hexdigest()


def test_saved_file_holds_the_displays_in_hash_order(local_platform, tmp_path):
    desc = TwoBundles(zebra=Bundle(3), ant=Bundle())
    desc.save(str(tmp_path / 'new' / 'folder'))
    assert (
        tmp_path / 'new' / 'folder' / 'hparams.log'
    ).read_text() == 'Bundle\n    * a => 1\nBundle\n    * a => 3'


def test_train_run_path(local_platform):
    desc = training_desc()
    assert desc.run_path(2) == f'{local_platform.root}/{desc.hashname}/replicate_2/main'
    assert desc.run_path(1, 'other') == f'{local_platform.root}/{desc.hashname}/replicate_1/other'


def test_lottery_run_path(local_platform):
    desc = lottery_desc()
    assert desc.run_path(2, 3) == f'{local_platform.root}/{desc.hashname}/replicate_2/level_3/main'
    assert desc.run_path(1, 'pretrain').endswith('/replicate_1/level_pretrain/main')
    assert desc.run_path(1, 0, 'other').endswith('/replicate_1/level_0/other')


@pytest.mark.parametrize('replicate', [0, -1, '1', 1.5, None])
def test_lottery_run_path_needs_a_positive_replicate(local_platform, replicate):
    with pytest.raises(ValueError):
        lottery_desc().run_path(replicate, 0)


def test_steps_of_a_lottery_without_pretraining():
    desc = lottery_desc()
    assert desc.train_start_step.iteration == 0
    assert desc.train_end_step.iteration == 2 * 15, 'digits: 1437 images, 15 iterations at batch 100'
    assert desc.str_to_step('1ep2it').iteration == 17


def test_start_step_is_the_pretrain_length_read_on_the_main_dataset():
    desc = lottery_desc(pretrain_dataset_hparams=DatasetHparams('digits', 500),
                        pretrain_training_hparams=TrainingHparams('sgd', 0.1, '2ep'))
    assert desc.pretrain_end_step.iteration == 6
    assert desc.str_to_step('1ep', pretrain=True).iteration == 3
    assert desc.train_start_step.iteration == 30


def test_outputs_are_left_to_the_model_family():
    """Reproduced: models always have the family's number of outputs, also for the 4 rotation classes."""

    desc = lottery_desc()
    assert (
        desc.train_outputs is None and desc.pretrain_outputs is None and training_desc().train_outputs is None
    )


def test_display_order():
    desc = lottery_desc(pretrain_dataset_hparams=DatasetHparams('digits', 500),
                        pretrain_training_hparams=TrainingHparams('sgd', 0.1, '2ep'))
    titles = [line.split()[0] for line in desc.display.splitlines() if not line.startswith(' ')]
    assert titles == ['Dataset', 'Model', 'Training', 'Pruning', 'Dataset', 'Training']
    titles = [line.split()[0] for line in training_desc().display.splitlines() if not line.startswith(' ')]
    assert titles == ['Dataset', 'Model', 'Training']


def test_speed_options_left_off_keep_run_names():
    assert training_desc().hashname == training_desc(amp=None, channels_last=False, compile=False).hashname
    assert training_desc(amp='bf16').hashname != training_desc().hashname
