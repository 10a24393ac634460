import argparse
import copy
from dataclasses import dataclass

import pytest

from open_lth.foundations.hparams import DatasetHparams, Hparams, ModelHparams, TrainingHparams
from open_lth.pruning.sparse_global import PruningHparams as SparseGlobalHparams


@dataclass
class Inner(Hparams):
    e: str = 'x'
    f: int = 4

    _name: str = 'Inner'
    _description: str = 'Nested.'


@dataclass
class Outer(Hparams):
    d: int
    a: str = 'hello'
    b: bool = False
    c: float = None
    inner: Inner = None

    _name: str = 'Outer'
    _description: str = 'A test bundle.'
    _a: str = 'Help with a.'


def parse(cls, *argv, defaults=None, prefix=None):
    parser = argparse.ArgumentParser()
    cls.add_args(parser, defaults=defaults, prefix=prefix)
    return cls.create_from_args(parser.parse_args(argv), prefix=prefix)


def help_text(cls, **kwargs):
    parser = argparse.ArgumentParser()
    cls.add_args(parser, **kwargs)
    return ' '.join(parser.format_help().split())


# ---- names and display

def test_canonical_name_sorts_fields_and_leaves_out_defaults():
    assert str(Outer(d=1)) == 'Hparams(d=1)'
    assert str(Outer(d=1, a='hi', b=True, c=1e-5)) == "Hparams(a='hi', b=True, c=1e-05, d=1)"


def test_canonical_name_of_nested_hparams():
    assert str(Outer(d=1, inner=Inner(f=5))) == 'Hparams(d=1, inner=Hparams(f=5))'


@pytest.mark.parametrize('value, text', [
    (0.1, '0.1'), (1.0, '1.0'), (0.0001, '0.0001'), (0.00001, '1e-05'), (0.0, '0.0'), (True, 'True'),
    ("it's", "'it's'"), ((1, 'a'), 'Tuple(1,a)')])
def test_canonical_rendering_of_values(value, text):
    assert str(Outer(d=1, c=value)) == f'Hparams(c={text}, d=1)'


def test_canonical_name_keeps_falsy_values_that_are_not_the_default():
    assert str(Outer(d=0, c=0.0, a='')) == "Hparams(a='', c=0.0, d=0)"


def test_canonical_name_never_mentions_the_class():
    assert str(DatasetHparams('cifar10', 128)) == "Hparams(batch_size=128, dataset_name='cifar10')"


def test_display_shows_required_and_truthy_fields_in_field_order():
    assert Outer(d=0, c=2.0).display == 'Outer\n    * d => 0\n    * a => hello\n    * c => 2.0'


def test_display_omits_explicit_falsy_values():
    """Reproduced: a data order seed of 0 is in the run name but not in hparams.log."""

    hparams = TrainingHparams('sgd', 0.1, '1ep', data_order_seed=0)
    assert 'data_order_seed' not in hparams.display
    assert 'data_order_seed=0' in str(hparams)


def test_a_deleted_attribute_shows_the_class_default():
    hparams = TrainingHparams('sgd', 0.1, '1ep', gamma=0.3, momentum=0.9)
    del hparams.gamma, hparams.momentum
    assert hparams.gamma is None and hparams.momentum == 0.0
    assert str(hparams) == str(TrainingHparams('sgd', 0.1, '1ep'))


@pytest.mark.parametrize('missing', ['_name', '_description'])
def test_name_and_description_are_required(missing):
    namespace = {'_name': 'N', '_description': 'D', 'a': 1, '__annotations__': {'a': int}}
    del namespace[missing]
    with pytest.raises(ValueError):
        dataclass(type('Incomplete', (Hparams,), namespace))()


def test_hparams_can_be_copied_independently():
    first = Outer(d=1, inner=Inner())
    second = copy.deepcopy(first)
    second.inner.f = 9
    assert first.inner.f == 4


# ---- command line

def test_flags_set_fields_with_their_types():
    hparams = parse(Outer, '--d=3', '--a', 'x', '--b', '--c=.1', '--inner_e=q')
    assert (hparams.d, hparams.a, hparams.b, hparams.c, hparams.inner.e, hparams.inner.f) == (
        3,
        'x',
        True,
        0.1,
        'q',
        4,
    )


def test_flags_without_values_take_class_defaults():
    hparams = parse(Outer, '--d=3')
    assert (hparams.a, hparams.b, hparams.c) == ('hello', False, None)


def test_prefixed_flags():
    assert parse(Outer, '--my_d=3', '--my_inner_f=6', prefix='my').inner.f == 6


@pytest.mark.parametrize('argv', [(), ('--d=x',), ('--d=1', '--inner=3'), ('--d=1', '--b=1')])
def test_bad_flags_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as error:
        parse(Outer, *argv)
    assert error.value.code == 2


def test_a_defaults_object_fills_in_and_is_not_shared():
    defaults = Outer(d=7, a='other', inner=Inner(e='z'))
    hparams = parse(Outer, defaults=defaults)
    assert (hparams.d, hparams.a, hparams.inner.e) == (7, 'other', 'z')
    hparams.inner.e = 'changed'
    assert defaults.inner.e == 'z'


def test_a_falsy_value_in_the_defaults_object_does_not_satisfy_a_required_field(capsys):
    with pytest.raises(SystemExit):
        parse(Outer, defaults=Outer(d=0))


def test_defaults_of_another_class_are_refused():
    with pytest.raises(ValueError):
        parse(Outer, '--d=1', defaults=Inner())


def test_a_true_default_of_a_boolean_is_refused():
    with pytest.raises(ValueError):
        parse(Outer, '--d=1', defaults=Outer(d=1, b=True))


@pytest.mark.parametrize('annotation, default', [(bool, True), (bool, None), (list, None), ('int', 3)])
def test_fields_that_cannot_become_flags_are_refused(annotation, default):
    namespace = {'_name': 'N', '_description': 'D', 'a': default, '__annotations__': {'a': annotation}}
    with pytest.raises(ValueError):
        parse(dataclass(type('Odd', (Hparams,), namespace)))


def test_missing_argument_in_the_namespace_is_refused():
    with pytest.raises(ValueError):
        Outer.create_from_args(argparse.Namespace(d=1))


def test_help_names_required_default_and_optional():
    text = help_text(Outer)
    assert (
        '(required: int)' in text and '(default: hello) Help with a.' in text and '(optional: float)' in text
    )
    assert '(optional)' in text and 'Outer: A test bundle.' in text


def test_help_shows_the_value_of_the_defaults_object():
    assert '(default: 7)' in help_text(Outer, defaults=Outer(d=7))


@pytest.mark.parametrize('cls', [DatasetHparams, ModelHparams, TrainingHparams])
def test_every_flag_of_the_bundles_has_help(cls):
    names = [name for name in cls.__dataclass_fields__ if not name.startswith('_')]
    assert all(getattr(cls, f'_{name}', '') for name in names)


# ---- the bundles

def test_positional_order_of_the_bundles():
    dataset = DatasetHparams('d', 1, True, 2, 0.3, 0.4, 'rotation', 5)
    assert (dataset.do_not_augment, dataset.transformation_seed, dataset.subsample_fraction,
            dataset.random_labels_fraction, dataset.unsupervised_labels, dataset.blur_factor) == (
                True, 2, 0.3, 0.4, 'rotation', 5)
    model = ModelHparams('m', 'i', 'b', True, False, True, 'x')
    assert (model.batchnorm_frozen, model.output_frozen, model.others_frozen) == (True, False, True)
    training = TrainingHparams('sgd', 0.1, '1ep', 1, 0.9, 0.8, '2ep', 0.1, '1it', 1e-4, True)
    assert (training.data_order_seed, training.momentum, training.nesterov_momentum, training.milestone_steps,
            training.gamma, training.warmup_steps, training.weight_decay, training.apex_fp16) == (
                1, 0.9, 0.8, '2ep', 0.1, '1it', 1e-4, True)


def test_positional_fraction_of_sparse_global_lands_in_its_name():
    """Reproduced: in the field order of OpenLTH the second positional value is `_name`."""

    hparams = SparseGlobalHparams('sparse_global', 0.3)
    assert hparams._name == 0.3 and hparams.pruning_fraction == 0.2


def test_instances_of_sparse_global_hparams_show_the_base_title():
    assert SparseGlobalHparams(pruning_strategy='sparse_global').display.startswith(
        'Pruning Hyperparameters\n'
    )
