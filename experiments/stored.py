"""JSON files that are read back."""

import json

from open_lth.foundations.errors import CorruptFileError


def read(path: str) -> dict:
    """What the file holds. FileNotFoundError when there is none, CorruptFileError when it is damaged."""
    with open(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise CorruptFileError(f'{path} is damaged ({error}); delete it to have it made again') from error
