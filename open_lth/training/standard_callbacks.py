"""What happens during training besides training: functions (output_location, step, model, optimizer, logger)."""

import time

import torch

from open_lth.foundations.step import Step
from open_lth.platforms.platform import get_platform
from open_lth.training import checkpointing

# With more outputs than this, evaluation also logs the top-5 accuracy (as the DNNShifter authors do).
_TOP5_ABOVE = 10


def save_model(output_location, step, model, optimizer, logger):
    model.save(output_location, step)


def save_logger(output_location, step, model, optimizer, logger):
    logger.save(output_location)


def save_rng_state(output_location, step, model, optimizer, logger):
    checkpointing.save_rng_state(output_location, 'train')


def create_timekeeper_callback():
    """Prints the time since it was last called."""
    time_of_last_call = None

    def callback(output_location, step, model, optimizer, logger):
        nonlocal time_of_last_call
        now = time.time()
        elapsed = 0 if time_of_last_call is None else now - time_of_last_call
        print(f'Ep {step.ep}\tIt {step.it}\tTime Elapsed {elapsed:.2f}', flush=True)
        time_of_last_call = now

    return callback


def create_eval_callback(eval_name, loader, verbose=False):
    """Logs '{eval_name}_loss', '_accuracy' and '_examples' over the loader, and prints them if verbose."""
    time_of_last_call = None

    def callback(output_location, step, model, optimizer, logger):
        nonlocal time_of_last_call
        totals = evaluate(model, loader)
        num_examples = totals['examples']
        for name, total in totals.items():
            logger.add(f'{eval_name}_{name}', step, total if name == 'examples' else total / num_examples)
        if verbose and get_platform().is_primary_process:
            now = time.time()
            elapsed = 0 if time_of_last_call is None else now - time_of_last_call
            print(f'{eval_name}\tep {step.ep:03d}\tit {step.it:03d}\tloss {totals["loss"] / num_examples:.3f}\t'
                  f'acc {100 * totals["accuracy"] / num_examples:.2f}%\tex {int(num_examples):d}\t'
                  f'time {elapsed:.2f}s', flush=True)
            time_of_last_call = now

    return callback


def evaluate(model, loader):
    """Sums over the examples as floats: loss, accuracy (hits), [top5accuracy (hits)], examples. In fp32, eval mode."""
    platform = get_platform()
    device = platform.torch_device
    totals = {name: torch.tensor(0.0, device=device) for name in ('loss', 'accuracy', 'top5accuracy', 'examples')}
    num_outputs = 0
    model.eval()
    with torch.no_grad():
        for examples, labels in loader:
            examples = examples.to(device)
            labels = labels.to(device).reshape(-1)
            output = model(examples)
            num_outputs = output.size(-1)
            totals['loss'] += model.loss_criterion(output, labels) * len(labels)
            totals['accuracy'] += (output.argmax(1) == labels).sum()
            if num_outputs > _TOP5_ABOVE:
                totals['top5accuracy'] += (output.topk(5).indices == labels[:, None]).sum()
            totals['examples'] += len(labels)
    if platform.is_distributed:
        for total in totals.values():
            torch.distributed.reduce(total, 0, op=torch.distributed.ReduceOp.SUM)
    if num_outputs <= _TOP5_ABOVE:
        del totals['top5accuracy']
    return {name: total.item() for name, total in totals.items()}


# Which of the steps a callback runs at.

def run_every_epoch(callback):
    def modified(output_location, step, model, optimizer, logger):
        if step.it == 0:
            callback(output_location, step, model, optimizer, logger)
    return modified


def run_every_step(callback):
    return callback


def run_at_step(at_step, callback):
    def modified(output_location, step, model, optimizer, logger):
        if step == at_step:
            callback(output_location, step, model, optimizer, logger)
    return modified


def standard_callbacks(training_hparams, train_set_loader, test_set_loader, eval_on_train=False, verbose=True,
                       start_step=None, evaluate_every_epoch=True, weight_save_steps=''):
    """Evaluation first, so that the weights saved have passed through a forward pass, which applies the mask.

    The files of the end step come in the order random state, checkpoint, log, weights: a run killed between any two
    goes on from the checkpoint, and the weights mark it as finished.
    """
    iterations_per_epoch = train_set_loader.iterations_per_epoch
    start = start_step or Step.zero(iterations_per_epoch)
    end = Step.from_str(training_hparams.training_steps, iterations_per_epoch)

    def save_checkpoint(output_location, step, model, optimizer, logger):
        checkpointing.save_checkpoint_callback(output_location, step, model, optimizer, logger,
                                               rng_state=train_set_loader.epoch_start_rng_state)

    result = [
        run_at_step(start, save_model),
        run_at_step(end, save_rng_state),
        run_every_epoch(save_checkpoint),
        run_at_step(end, save_logger),
        run_at_step(end, save_model),
    ]
    result += [run_at_step(Step.from_str(text, iterations_per_epoch), save_model)
               for text in weight_save_steps.split(',') if text]
    if verbose and not evaluate_every_epoch:
        result.append(run_every_epoch(create_timekeeper_callback()))

    def evaluation(name, loader):
        evaluate_and_log = create_eval_callback(name, loader, verbose=verbose)
        at_ends = [run_at_step(step, evaluate_and_log) for step in (end, start)
                   if step.it != 0 or not evaluate_every_epoch]
        return at_ends + ([run_every_epoch(evaluate_and_log)] if evaluate_every_epoch else [])

    result = evaluation('test', test_set_loader) + result
    if eval_on_train:
        result = evaluation('train', train_set_loader) + result
    return result
