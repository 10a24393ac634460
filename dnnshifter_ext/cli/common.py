"""What the commands share: shapes as flags, the files they will write, random inputs, and a comparison in words."""

from __future__ import annotations

from collections.abc import Sequence
import math
import os
import pathlib
import re

import torch

from dnnshifter_ext.verify import Comparison
from open_lth.foundations.errors import UserError

# As many inputs for a proof as there is time for: 16 of 3x64x64, 2 of 3x224x224.
MIN_INPUTS, MAX_INPUTS, MAX_VALUES = 2, 16, 16 * 3 * 64 * 64

_SHAPE = re.compile(r'[1-9]\d{0,4}(x[1-9]\d{0,4})*')


def input_shape(text: str | None) -> tuple[int, ...] | None:
    """The value of --input_shape: '3x32x32' is (3, 32, 32). Raises UserError."""
    if text is None:
        return None
    if not _SHAPE.fullmatch(text):
        raise UserError(f"--input_shape is written like 3x32x32, not '{text}'")
    return tuple(map(int, text.split('x')))


def by(shape: Sequence[int]) -> str:
    """The inverse of `input_shape`."""
    return 'x'.join(map(str, shape))


def check_outputs(outputs: Sequence[pathlib.Path], source: pathlib.Path, what: str) -> None:
    """Before any work: UserError if the files, all in one folder, cannot be written, or would replace the source."""
    folder = outputs[0].parent
    if not folder.is_dir():
        raise UserError(f'--output: there is no folder {folder}')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--output: the folder {folder} is not writable')
    for path in outputs:
        if path.is_dir():
            raise UserError(f'--output: {path} is a folder')
        if path.exists() and source.exists() and path.samefile(source):
            raise UserError(f'--output: {path} would replace the {what}')


def random_inputs(shape: Sequence[int], num: int | None = None) -> torch.Tensor:
    """A batch of standard normal inputs, always the same; as many as there is time for. Raises MemoryError."""
    num = num or max(MIN_INPUTS, min(MAX_INPUTS, MAX_VALUES // math.prod(shape)))
    try:
        return torch.randn(num, *shape, generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:
        raise MemoryError(f'{num} inputs of {by(shape)} do not fit into memory') from error


def comparison_lines(report: Comparison) -> list[str]:
    """The largest difference and the changed predictions, indented."""
    return [f'    max |difference|     {report.max_abs_difference:.3g}, where the outputs range over '
            f'{report.output_range:.3g}',
            f'    changed predictions  {report.changed_predictions} of {report.num_predictions}']
