"""The command `export`: a model file of ours into ONNX, with the proof on the screen."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
import importlib
import pathlib

from dnnshifter_ext import export, onnx, paths
from dnnshifter_ext.cli import common
from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.runner import Runner

PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


@dataclass
class ExportRunner(Runner):
    model: pathlib.Path
    output: pathlib.Path
    input_shape: tuple[int, ...] | None = None

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['export']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group('Export', 'What is exported.')
        group.add_argument('--model', help='(required: str) A file that `convert` or dnnshifter_ext.save wrote, or the '
                           'folder level_K/dnnshifter of a run.')
        group.add_argument('--output', help='(required: str) The ONNX file, with the weights inside.')
        group.add_argument('--input_shape', help='The shape of one input, for example 3x32x32 (required unless the '
                           'file of the model says so). The batch stays open.')

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> ExportRunner:
        for name in ('model', 'output'):
            if not getattr(args, name):
                raise UserError(f'export needs --{name}; see export --help')
        return ExportRunner(pathlib.Path(args.model), pathlib.Path(args.output), common.input_shape(args.input_shape))

    def display_output_location(self) -> None:
        print(self.output)

    def run(self) -> None:
        path = pathlib.Path(paths.model(self.model)) if self.model.is_dir() else self.model
        common.check_outputs([self.output], path, 'model')
        require_packages()
        try:
            model = export.load(path)
        except ValueError as error:
            raise UserError(f'{error}. Give a file that `convert` wrote') from error
        shape = self.input_shape or model.meta['input_shape']
        if shape is None:
            raise UserError(f'{path} does not say what its inputs look like: give --input_shape, for example 3x32x32')
        try:
            inputs = common.random_inputs(shape)
            content = onnx.to_onnx(model, inputs[:2])
            report = onnx.check_onnx(content, model, inputs)
        except (ValueError, MemoryError) as error:
            raise UserError(f'{path} cannot be exported: {error}') from error
        if not report.within(onnx.TOLERANCE):
            raise UserError(f'{path} cannot be exported: with ONNX Runtime the outputs differ by '
                            f'{report.max_abs_difference:.3g} where they range over {report.output_range:.3g}')
        with write_atomically(self.output, 'wb') as file:
            file.write(content)
        print('\n'.join([
            f'{path}', '',
            f'Check of ONNX Runtime against torch in float64, on {len(inputs)} random inputs of {common.by(shape)}, '
            'one alone and all at once:', *common.comparison_lines(report),
            f'    allowed              {onnx.TOLERANCE:.3g} of the range', '',
            f'ONNX: {self.output} ({len(content):,} bytes), {onnx.INPUT}: batch x {" x ".join(map(str, shape))}']))


def require_packages() -> None:
    """Raises UserError where what writes and checks ONNX is not installed."""
    try:
        for name in PACKAGES:
            importlib.import_module(name)
    except ImportError as error:
        raise UserError(f'export needs {", ".join(PACKAGES)} ({error}): pip install {" ".join(PACKAGES)}') from error
