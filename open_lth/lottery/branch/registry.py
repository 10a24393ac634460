"""Branches of lottery ticket experiments by name."""

from open_lth.foundations.lazy import LazyRegistry

registered_branches = LazyRegistry({
    name: f'open_lth.lottery.branch.{name}:Branch'
    for name in ('randomly_prune', 'randomly_reinitialize', 'retrain')})


def get(branch_name):
    if branch_name not in registered_branches:
        raise ValueError(f'no such branch: {branch_name}')
    return registered_branches[branch_name]
