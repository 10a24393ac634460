"""The rim: packages as files."""

from __future__ import annotations

from collections.abc import Sequence
import os
import pathlib

from dnnshifter_ext.package import container
from dnnshifter_ext.package.errors import PackageError
from open_lth.foundations.files import write_atomically


def save(path: str | os.PathLike, variants: Sequence[container.Variant]) -> None:
    """Writes the package: a reader, and a process killed at any moment, sees the old file or the new one.

    Raises PackageError before anything is written, and OSError with the old file intact.
    """
    content = container.write(variants)
    with write_atomically(path, 'wb') as file:
        file.write(content)


def load(path: str | os.PathLike, *, max_variant_bytes: int = container.MAX_VARIANT_BYTES) -> container.Package:
    """The package in the file, read into memory as it is; see `container.read`.

    Raises PackageError with the path, and FileNotFoundError.
    """
    try:
        return container.read(pathlib.Path(path).read_bytes(), max_variant_bytes=max_variant_bytes)
    except PackageError as error:
        raise PackageError(f'{path}: {error}') from error
