"""Puts the command `experiments` into the engine's registry; it is imported when it is used."""

from open_lth.cli.runner_registry import DESCRIPTIONS, registered_runners


def install() -> None:
    registered_runners['experiments'] = 'experiments.listing:ExperimentsRunner'
    DESCRIPTIONS['experiments'] = "List the paper's tables and figures, and how much of each has been run."
