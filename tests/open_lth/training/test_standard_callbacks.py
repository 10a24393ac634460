import re

import pytest
import torch

from open_lth.datasets import registry as datasets
from open_lth.foundations.step import Step
from open_lth.training import standard_callbacks as callbacks
from open_lth.training.metric_logger import MetricLogger
from open_lth.training.train import train
from tests.helpers import artefacts, build_model, tiny_desc

pytestmark = pytest.mark.usefixtures('local_platform')


class FixedLogits(torch.nn.Module):
    """A model whose input is its output."""

    loss_criterion = torch.nn.CrossEntropyLoss()

    def forward(self, x):
        return x


def evaluate(batches, name='test', verbose=False):
    logger = MetricLogger()
    callbacks.create_eval_callback(name, batches, verbose)('', Step(7, 5), FixedLogits(), None, logger)
    return logger


def batches_of(logits, labels, size):
    return list(zip(logits.split(size), labels.split(size)))


# ---- evaluation

@pytest.mark.parametrize('size', [1, 3, 4, 10], ids=lambda size: f'batch-{size}')
def test_loss_and_accuracy_are_means_over_examples(size):
    """Also with a last batch of one example, on which OpenLTH fails."""

    torch.manual_seed(0)
    logits, labels = torch.randn(10, 4), torch.arange(10) % 4
    logger = evaluate(batches_of(logits, labels, size))
    assert logger.get_data('test_loss') == [
        (7, pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6))]
    assert logger.get_data('test_accuracy') == [(7, (logits.argmax(1) == labels).sum().item() / 10)]
    assert logger.get_data('test_examples') == [(7, 10.0)]


def test_records_come_in_a_fixed_order():
    logger = evaluate(batches_of(torch.eye(4), torch.arange(4), 4), name='train')
    assert re.fullmatch(r'train_loss,7,\d\.\d+\ntrain_accuracy,7,1\.0\ntrain_examples,7,4\.0', str(logger))


def test_labels_of_shape_n_by_1_are_squeezed():
    assert evaluate([(torch.eye(4), torch.arange(4)[:, None])]).get_data('test_accuracy') == [(7, 1.0)]


def test_top5_accuracy_is_logged_for_many_classes_only():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 11), torch.arange(40) % 11
    expected = sum(label in row.topk(5).indices for row, label in zip(logits, labels)) / 40
    assert evaluate([(logits, labels)]).get_data('test_top5accuracy') == [(7, expected)]
    assert 'test_top5accuracy' not in evaluate([(logits[:, :10], labels % 10)]).names


def test_evaluation_is_in_eval_mode_and_changes_nothing():
    desc = tiny_desc()
    model = build_model(desc).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = datasets.get(desc.dataset_hparams, train=False)
    callbacks.create_eval_callback('test', loader)('', Step(0, 5), model, None, MetricLogger())
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_line_of_an_evaluation(capsys):
    evaluate(batches_of(torch.eye(4) * 100, torch.tensor([0, 1, 2, 0]), 4), verbose=True)
    assert capsys.readouterr().out == 'test\tep 001\tit 002\tloss 25.000\tacc 75.00%\tex 4\ttime 0.00s\n'
    evaluate(batches_of(torch.eye(4), torch.arange(4), 4), verbose=False)
    assert capsys.readouterr().out == ''


def test_line_of_the_timekeeper(capsys):
    timekeeper = callbacks.create_timekeeper_callback()
    timekeeper('', Step(7, 5), None, None, None)
    assert capsys.readouterr().out == 'Ep 1\tIt 2\tTime Elapsed 0.00\n'


# ---- when they run

def called_at(wrap, iterations=range(12)):
    calls = []
    wrapped = wrap(lambda output_location, step, model, optimizer, logger: calls.append(step.iteration))
    for iteration in iterations:
        wrapped('', Step(iteration, 5), None, None, None)
    return calls


def test_every_step():
    assert called_at(callbacks.run_every_step) == list(range(12))


def test_every_epoch():
    assert called_at(callbacks.run_every_epoch) == [0, 5, 10]


def test_at_one_step():
    assert called_at(lambda callback: callbacks.run_at_step(Step(7, 5), callback)) == [7]


def test_steps_of_another_epoch_length_are_refused():
    with pytest.raises(ValueError):
        called_at(lambda callback: callbacks.run_at_step(Step(7, 6), callback))


# ---- the standard list

def run(tmp_path, training_steps='2ep', **options):
    """A small training with the standard callbacks; the iterations at which each metric was logged."""

    desc = tiny_desc(training_steps=training_steps)
    train_loader, test_loader = (datasets.get(desc.dataset_hparams, train=train) for train in (True, False))
    standard = callbacks.standard_callbacks(desc.training_hparams, train_loader, test_loader,
                                            **({'verbose': False} | options))
    train(desc.training_hparams, build_model(desc), train_loader, str(tmp_path), standard,
          start_step=options.get('start_step'))
    logger = MetricLogger.create_from_file(str(tmp_path))
    return {name: [iteration for iteration, _ in logger.get_data(name)] for name in logger.names}


def test_evaluation_every_epoch_and_at_both_ends(tmp_path):
    assert run(tmp_path, '1ep3it')['test_loss'] == [0, 5, 8]
    assert artefacts(tmp_path) == {'checkpoint.pth', 'logger', 'model_ep0_it0.pth', 'model_ep1_it3.pth'}


def test_evaluation_only_at_the_ends(tmp_path):
    assert run(tmp_path, '1ep3it', evaluate_every_epoch=False)['test_loss'] == [0, 8]


def test_evaluation_from_a_later_start(tmp_path):
    assert run(tmp_path, '2ep', start_step=Step(3, 5))['test_loss'] == [3, 5, 10]
    assert artefacts(tmp_path) == {'checkpoint.pth', 'logger', 'model_ep0_it3.pth', 'model_ep2_it0.pth'}


def test_evaluation_on_the_training_set_comes_first(tmp_path):
    metrics = run(tmp_path, '1ep', eval_on_train=True)
    assert list(metrics)[0] == 'train_loss' and metrics['train_loss'] == metrics['test_loss'] == [0, 5]


def test_no_checkpoint_inside_the_first_epoch(tmp_path):
    run(tmp_path, '4it', start_step=Step(2, 5))
    assert artefacts(tmp_path) == {'logger', 'model_ep0_it2.pth', 'model_ep0_it4.pth'}


def test_further_weights_are_saved_where_asked(tmp_path):
    run(tmp_path, '1ep', weight_save_steps='2it,3it')
    assert {'model_ep0_it2.pth', 'model_ep0_it3.pth'} <= artefacts(tmp_path)


def test_timekeeper_speaks_when_evaluation_does_not(tmp_path, capsys):
    run(tmp_path, '2ep', verbose=True, evaluate_every_epoch=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ['test', 'Ep', 'Ep', 'test', 'Ep']
    assert [re.sub(r'\d+\.\d+', 'T', line) for line in lines if line.startswith('Ep')] == [
        'Ep 0\tIt 0\tTime Elapsed T', 'Ep 1\tIt 0\tTime Elapsed T', 'Ep 2\tIt 0\tTime Elapsed T']
