"""The commands, in the order in which they are listed."""

from open_lth.foundations.lazy import LazyRegistry

registered_runners = LazyRegistry(
    train='open_lth.training.runner:TrainingRunner',
    lottery='open_lth.lottery.runner:LotteryRunner',
    lottery_branch='open_lth.lottery.branch.runner:BranchRunner',
    branch='open_lth.training.branch.runner:BranchRunner',
)

# Said here rather than asked of the classes, so that listing the commands imports none of them.
DESCRIPTIONS = dict(
    train='Train a model.',
    lottery='Run a lottery ticket experiment: train, prune, rewind, repeat.',
    lottery_branch='Run a branch off the levels of an existing lottery ticket experiment.',
    branch='Run a branch off an existing training run.',
)


def get(runner_name):
    """The runner class; ValueError for an unknown name."""
    if runner_name not in registered_runners:
        raise ValueError(f'no such runner: {runner_name}')
    return registered_runners[runner_name]
