"""The command `branch train BRANCH`."""

import sys

from open_lth.cli import arg_utils
from open_lth.cli.branching import list_branches
from open_lth.training.branch.registry import registered_branches


class BranchRunner:
    """Hands over to the branch named on the command line, which is the runner."""

    @staticmethod
    def description():
        return 'Run a branch off an existing training run.'

    @staticmethod
    def add_args(parser):
        runner_name = arg_utils.maybe_get_arg('runner_name', positional=True, position=1)
        branch_name = arg_utils.maybe_get_arg('branch_name', positional=True, position=2)
        if runner_name != 'train' or branch_name not in registered_branches:
            print(list_branches(f'{sys.argv[0]} branch train', registered_branches))
            sys.exit(1)
        parser.add_argument('runner_name', help="What the branch starts from: 'train'.")
        parser.add_argument('branch_name', help='The name of the branch.')
        registered_branches[branch_name].add_args(parser)

    @staticmethod
    def create_from_args(args):
        return registered_branches[args.branch_name].create_from_args(args)
