import pytest

from open_lth.foundations.step import Step
from open_lth.training.metric_logger import MetricLogger

TEXT = 'test_loss,0,1.5\ntest_accuracy,0,0.1\ntest_loss,20,0.25'


def step(iteration):
    return Step(iteration, 20)


@pytest.fixture
def logger():
    logger = MetricLogger()
    logger.add('test_loss', step(0), 1.5)
    logger.add('test_accuracy', step(0), 0.1)
    logger.add('test_loss', step(20), 0.25)
    return logger


def test_text_has_one_record_a_line_in_order_of_insertion(logger):
    assert str(logger) == TEXT


def test_a_second_value_replaces_the_first_in_its_place(logger):
    logger.add('test_loss', step(0), 9.0)
    assert str(logger) == TEXT.replace('1.5', '9.0')


def test_data_are_sorted_by_iteration(logger):
    logger.add('test_loss', step(5), 0.5)
    assert logger.get_data('test_loss') == [(0, 1.5), (5, 0.5), (20, 0.25)]
    assert logger.get_data('nope') == []


def test_single_values_and_names(logger):
    assert logger.get_data('test_loss', step(20)) == 0.25 and logger.get_data('test_loss', step(1)) is None
    assert sorted(logger.names) == ['test_accuracy', 'test_loss']


@pytest.mark.parametrize('text', [TEXT, '', 'a,1,1e-05', 'a,1,nan'])
def test_reading_is_the_inverse_of_writing(text):
    assert str(MetricLogger.create_from_string(text)) == text


def test_blank_text_is_an_empty_log():
    assert str(MetricLogger.create_from_string('\n  \n')) == ''


def test_file(local_platform, tmp_path, logger):
    logger.save(str(tmp_path / 'new'))
    assert (tmp_path / 'new' / 'logger').read_text() == TEXT, 'no newline at the end'
    assert str(MetricLogger.create_from_file(str(tmp_path / 'new'))) == TEXT


@pytest.mark.parametrize('text', ['rubbish', 'a,b,c', 'test_loss,0', 'test_loss,0,1.5\nhalf a li'])
def test_damaged_file_is_named(local_platform, tmp_path, text):
    (tmp_path / 'logger').write_text(text)
    with pytest.raises(ValueError, match='logger'):
        MetricLogger.create_from_file(str(tmp_path))


def test_damaged_bytes_are_named(local_platform, tmp_path):
    (tmp_path / 'logger').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='logger'):
        MetricLogger.create_from_file(str(tmp_path))
