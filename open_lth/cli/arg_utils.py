"""Looking at single arguments before the full parser can be built."""

import argparse


def maybe_get_arg(arg_name, positional=False, position=0, boolean_arg=False):
    """The value of one argument of sys.argv, or None when it is absent or unreadable.

    `position` is the place of a positional argument; `boolean_arg` makes it a flag without a value.
    """
    parser = _Silent(add_help=False)
    if positional:
        for i in range(position):
            parser.add_argument(f'arg{i}')
        parser.add_argument(arg_name)
    elif boolean_arg:
        parser.add_argument(f'--{arg_name}', action='store_true')
    else:
        parser.add_argument(f'--{arg_name}')
    try:
        args, _ = parser.parse_known_args()
    except _Unreadable:
        return None
    return getattr(args, arg_name, None)


class _Unreadable(Exception):
    pass


class _Silent(argparse.ArgumentParser):
    """Leaves it to the full parser to tell the user what is wrong."""

    def error(self, message):
        raise _Unreadable(message)
