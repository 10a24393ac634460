"""The command `portfolio`: the variants of a lottery run into one package, and what can be done with a package.

Only the actions that make or need models import torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import csv
from dataclasses import dataclass
import json
import os
import pathlib

from dnnshifter_ext import paths
from dnnshifter_ext.package import Package, PackageError, PackedVariant, Variant, files
from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.runner import Runner

MIB = 2**20
ACTIONS = {
    'pack': 'RUN_DIR -o FILE [--all]: the optimal variants of a lottery run, or all, into one file',
    'list': 'FILE: what is in it',
    'verify': 'FILE: inflates everything and checks it',
    'unpack': 'FILE -o FOLDER [--variant NAME]: each variant as NAME.pth, for dnnshifter_ext.load',
    'export-onnx': 'FILE -o FOLDER [--variant NAME]: each variant as NAME.onnx, checked with ONNX Runtime',
}


@dataclass
class PortfolioRunner(Runner):
    action: str
    path: pathlib.Path
    output: pathlib.Path | None = None
    every_level: bool = False
    variant: str | None = None

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['portfolio']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group('Portfolio', '\n'.join(f'{name} {what}.' for name, what in ACTIONS.items()))
        group.add_argument('action', nargs='?', metavar='ACTION', help=' | '.join(ACTIONS))
        group.add_argument('path', nargs='?', metavar='PATH', help='The package; for pack, the folder of the run: '
                           'lottery_HASH/replicate_N.')
        group.add_argument('--output', '-o', help='(pack, unpack, export-onnx) The file, or the existing folder, to '
                           'write to.')
        group.add_argument('--all', action='store_true', help='(pack, optional) All levels, not only the optimal ones.')
        group.add_argument('--variant', help='(unpack, export-onnx, optional: str) Only this variant.')

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> PortfolioRunner:
        if args.action not in ACTIONS or not args.path:
            raise UserError(f'portfolio is called as `portfolio {"|".join(ACTIONS)} PATH`; see portfolio --help')
        writes = args.action in ('pack', 'unpack', 'export-onnx')
        if writes != bool(args.output):
            raise UserError(f'portfolio {args.action} ' + ('needs -o, where to write to' if writes else 'takes no -o'))
        for flag, given, actions in (('--all', args.all, ('pack',)),
                                     ('--variant', args.variant, ('unpack', 'export-onnx'))):
            if given and args.action not in actions:
                raise UserError(f'portfolio {args.action} takes no {flag}')
        return PortfolioRunner(args.action, pathlib.Path(args.path), pathlib.Path(args.output) if writes else None,
                               args.all, args.variant)

    def display_output_location(self) -> None:
        print(self.output or self.path)

    def run(self) -> None:
        actions = {'pack': self._pack, 'list': self._list, 'verify': self._verify, 'unpack': self._unpack,
                   'export-onnx': self._export_onnx}
        try:
            actions[self.action]()
        except PackageError as error:
            raise UserError(str(error)) from error

    def _pack(self) -> None:
        levels = _levels(self.path, self.every_level)
        _check_folder(self.output.parent)
        if self.output.is_dir():
            raise UserError(f'--output: {self.output} is a folder, not a file to write')
        files.save(self.output, [_variant(directory, standing) for directory, standing in levels])
        print(f'{_table(files.load(self.output))}\n\nPackage: {self.output}')

    def _list(self) -> None:
        print(_table(files.load(self.path)))

    def _verify(self) -> None:
        package = files.load(self.path)
        with _naming(self.path):
            package.verify()
        print(f'{self.path} is intact: {_count(len(package.variants), "variant")}, every checksum, every block.')

    def _unpack(self) -> None:
        from dnnshifter_ext import export
        from dnnshifter_ext.package import models
        for variant in self._chosen():
            with _naming(self.path):
                content = export.to_bytes(models.rebuild(variant))
            self._write(f'{variant.name}.pth', content)

    def _export_onnx(self) -> None:
        from dnnshifter_ext import onnx
        from dnnshifter_ext.cli import common
        from dnnshifter_ext.cli.export import require_packages
        from dnnshifter_ext.package import models
        require_packages()
        for variant in self._chosen():
            with _naming(self.path):
                model = models.rebuild(variant)
                shape = model.meta['input_shape']
                if shape is None:
                    raise ValueError(f"variant '{variant.name}' does not say what its inputs look like")
                inputs = common.random_inputs(shape)
                content = onnx.to_onnx(model, inputs[:2])
                report = onnx.check_onnx(content, model, inputs)
                if not report.within(onnx.TOLERANCE):
                    raise ValueError(f"variant '{variant.name}' differs by {report.max_abs_difference:.3g} with ONNX "
                                     f'Runtime, where its outputs range over {report.output_range:.3g}')
            self._write(f'{variant.name}.onnx', content)

    def _chosen(self) -> Sequence[PackedVariant]:
        """The variants asked for, once the folder to write to is known to be there."""
        _check_folder(self.output)
        package = files.load(self.path)
        if self.variant is None:
            return package.variants
        try:
            return [package[self.variant]]
        except KeyError:
            names = ', '.join(variant.name for variant in package.variants)
            raise UserError(f"{self.path} has no variant '{self.variant}', only {names}") from None

    def _write(self, name: str, content: bytes) -> None:
        with write_atomically(self.output / name, 'wb') as file:
            file.write(content)
        print(self.output / name)


def _levels(folder: pathlib.Path, every_level: bool) -> list[tuple[pathlib.Path, dict]]:
    """(folder of the pruned model, what the portfolio's table says of it) for each level to be packed."""
    table = pathlib.Path(paths.portfolio_table(os.fspath(folder)))
    if not table.is_file():
        raise UserError(f'{folder} has no {table.name}: give the folder lottery_HASH/replicate_N of a lottery run '
                        'with its portfolio')
    try:
        with open(table, newline='') as file:
            rows = [(int(row['level']), {'comparable_latency_ms': float(row['comparable_latency_ms']),
                                         'pareto_optimal': row['pareto_optimal'] == 'True'})
                    for row in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'{table} is no table of a portfolio ({type(error).__name__}: {error})') from error
    chosen = [(folder / f'level_{level}' / paths.EXPERIMENT, standing) for level, standing in rows
              if every_level or standing['pareto_optimal']]
    if not chosen:
        raise UserError(f'{table} has no {"level" if every_level else "optimal variant"}')
    return chosen


def _variant(directory: pathlib.Path, standing: dict) -> Variant:
    """The pruned model in `directory`, with its profile, what is known of its sparse execution, and its standing."""
    from dnnshifter_ext import export
    from dnnshifter_ext.package import models
    profile_path = pathlib.Path(paths.profile(os.fspath(directory)))
    try:
        summary = json.loads(profile_path.read_text())
        profile = {'level': int(summary['level']), 'compression_ratio': summary['compression_ratio'],
                   **summary['pruned'], **standing}
        profile |= {key: summary[key] for key in ('hybrid', 'execution') if summary.get(key)}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f'{profile_path} is damaged ({type(error).__name__}: {error})') from error
    with _naming(directory):
        model = export.load(paths.model(os.fspath(directory)))
        return models.variant(f'level_{profile["level"]}', model, profile)


def _check_folder(folder: pathlib.Path) -> None:
    """Before any work: UserError unless files can be written into the folder."""
    if not folder.is_dir():
        raise UserError(f'--output: there is no folder {folder}')
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f'--output: the folder {folder} is not writable')


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Turns the core's errors, which know no files, into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, MemoryError) as error:
        text = str(error) or type(error).__name__
        raise UserError(text if str(path) in text else f'{path}: {text}') from error


def _table(package: Package) -> str:
    """One line per variant, smallest first, and what it all takes."""
    rows = [('variant', 'ratio', 'accuracy %', 'parameters', 'non-zero', 'MiB dense', 'bytes packed', '')]
    rows += [_row(variant) for variant in package.variants]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ['  '.join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
             for row in rows]
    total = f'{_count(len(package.variants), "variant")} in {len(package.content):,} bytes.'
    return '\n'.join([*(line.rstrip() for line in lines), '', total])


def _row(variant: PackedVariant) -> tuple[str, ...]:
    ratio, accuracy, num_nonzero = (_known(variant.profile.get(key)) for key in (
        'compression_ratio', 'accuracy', 'num_nonzero_params'))
    return (variant.name,
            '-' if ratio is None else f'{ratio:.1f}',
            '-' if accuracy is None else f'{100 * accuracy:.2f}',
            f'{sum(tensor.size for tensor in variant.tensors.values()):,}',
            '-' if num_nonzero is None else f'{num_nonzero:,.0f}',
            f'{variant.num_bytes / MIB:.2f}',
            f'{variant.packed_bytes:,}',
            'optimal' if variant.profile.get('pareto_optimal') is True else '')


def _known(value: object) -> float | None:
    """The value, if it is a number: profiles may hold anything."""
    return value if isinstance(value, (int, float)) else None


def _count(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'
