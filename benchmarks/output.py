"""What the benchmarks measured, as a file."""

from __future__ import annotations

import json
from pathlib import Path

from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically


def require_folder(output: str | None) -> None:
    """Before any work: UserError if --output is given and its folder is not there."""
    if output and not Path(output).absolute().parent.is_dir():
        raise UserError(f'--output: there is no folder {Path(output).parent}')


def write(output: str | None, data: dict) -> None:
    """As JSON, if --output is given."""
    if output:
        with write_atomically(output) as file:
            json.dump(data, file, indent=1)
