"""Looking at single arguments before the full parser can be built."""

import argparse
import sys


def maybe_get_arg(arg_name, positional=False, position=0, boolean_arg=False):
    """The value of one argument of sys.argv, or None when it is absent or unreadable.

    `position` is the place of a positional argument; `boolean_arg` makes it a flag without a value.
    """
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    if positional:
        for i in range(position):
            parser.add_argument(f'arg{i}')
        # '?' instead of a required argument: a missing one is None, without argparse's usage lines on stderr.
        parser.add_argument(arg_name, nargs='?')
    elif boolean_arg:
        parser.add_argument(f'--{arg_name}', action='store_true')
    else:
        parser.add_argument(f'--{arg_name}')
    try:
        args, _ = parser.parse_known_args()
    except (Exception, SystemExit):
        return None
    return getattr(args, arg_name, None)


def script_name():
    """What the user typed to start the program."""
    return sys.argv[0]
