"""The command `lottery_branch BRANCH`."""

import sys

from open_lth.cli import arg_utils
from open_lth.cli.branching import list_branches
from open_lth.lottery.branch.registry import registered_branches


class BranchRunner:
    """Hands over to the branch named on the command line, which is the runner."""

    @staticmethod
    def description():
        return 'Run a branch off the levels of an existing lottery ticket experiment.'

    @staticmethod
    def add_args(parser):
        branch_name = arg_utils.maybe_get_arg('branch_name', positional=True, position=1)
        if branch_name not in registered_branches:
            print(list_branches(f'{sys.argv[0]} lottery_branch', registered_branches))
            sys.exit(1)
        parser.add_argument('branch_name', help='The name of the branch.')
        registered_branches[branch_name].add_args(parser)

    @staticmethod
    def create_from_args(args):
        return registered_branches[args.branch_name].create_from_args(args)
