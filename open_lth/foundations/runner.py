"""What every command is: built from command-line arguments, then run."""

import abc
import sys

_WIDTH = 82


class Runner(abc.ABC):
    @staticmethod
    @abc.abstractmethod
    def description():
        """One line for the list of commands."""

    @staticmethod
    @abc.abstractmethod
    def add_args(parser): pass

    @staticmethod
    @abc.abstractmethod
    def create_from_args(args): pass

    @abc.abstractmethod
    def display_output_location(self):
        """Prints where the results of this command are or will be."""

    @abc.abstractmethod
    def run(self): pass

    @property
    def seed_names(self):
        """What the default seed is derived from: run name and replicate."""
        return ()


def print_frame(title, display, output_location):
    """What each command says first: what it runs, and where the results go."""
    print('\n'.join(['=' * _WIDTH, title, '-' * _WIDTH, display, f'Output Location: {output_location}', '=' * _WIDTH,
                     '']), flush=True)


def print_heading(title):
    """Before each of several trainings. On a terminal the progress bar has the title."""
    if not on_terminal():
        print('\n'.join(['-' * _WIDTH, title, '', '-' * _WIDTH]), flush=True)


def on_terminal():
    """Whether a person watches: then training shows a bar instead of lines."""
    return sys.stdout.isatty() and sys.stderr.isatty()
