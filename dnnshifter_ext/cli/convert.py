"""The command `convert`: a user's own sparse model into a smaller file, with the table and the proof on the screen."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
import json
import pathlib

import torch
from torch import nn

from dnnshifter_ext import export, paths, sources
from dnnshifter_ext.cli import common
from dnnshifter_ext.conversion import Conversion, convert
from dnnshifter_ext.costs import num_params, size_bytes
from dnnshifter_ext.flow import analyse, collapsed_at
from dnnshifter_ext.graph import trace_shapes
from dnnshifter_ext.plan import LayerPlan, RemovalPlan
from dnnshifter_ext.sparse.choice import EXECUTIONS, Execution
from dnnshifter_ext.structure import structure_of
from open_lth.cli.runner_registry import DESCRIPTIONS
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.runner import Runner

MODES = ('exact', 'paper')


@dataclass
class ConvertRunner(Runner):
    model: str
    checkpoint: str
    output: pathlib.Path
    input_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    mode: str = 'exact'
    round_to: int = 1
    execution: str = 'dense'
    batch_size: int | None = None

    @staticmethod
    def description() -> str:
        return DESCRIPTIONS['convert']

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group('Conversion', 'What is converted, and how.')
        group.add_argument('--model', help='(required: str) A torchvision architecture (resnet50), a function of your '
                           'own (package.module:factory), or a model of OpenLTH (cifar_vgg_16).')
        group.add_argument('--checkpoint', help='(required: str) A file with a state dict (masks of '
                           'torch.nn.utils.prune are multiplied in), or the folder level_K/main of a run.')
        group.add_argument('--output', help='(required: str) The file of the pruned model, for dnnshifter_ext.load. '
                           'The plan goes beside it, to NAME.plan.json.')
        group.add_argument('--input_shape', help='The shape of one input, for example 3x32x32 (required unless known '
                           "from the OpenLTH model's data set).")
        group.add_argument('--num_classes', type=int, help="(optional: int) The number of the model's outputs. "
                           "Without it: that of the checkpoint's last layer.")
        group.add_argument('--mode', default='exact', help='(default: exact) exact, or paper for the published rule, '
                           'which drops constants and so changes the outputs.')
        group.add_argument('--execution', default='dense', help='(default: dense) dense; sparse for kernels that touch '
                           'only the weights that are left (CPU, float32); auto for what is fastest on this machine, '
                           'layer by layer.')
        group.add_argument('--batch_size', type=int, help='(optional: int) The number of inputs at a time for which '
                           '--execution=auto measures. Without it: a few, as many as are checked.')
        group.add_argument('--round_to', type=int, default=1, help='(default: 1) Keeps channels that could go until '
                           'layers have a multiple of this many.')

    @staticmethod
    def create_from_args(args: argparse.Namespace) -> ConvertRunner:
        for name in ('model', 'checkpoint', 'output'):
            if not getattr(args, name):
                raise UserError(f'convert needs --{name}; see convert --help')
        input_shape = common.input_shape(args.input_shape)
        if args.mode not in MODES:
            raise UserError(f'--mode is {" or ".join(MODES)}, not {args.mode}')
        if args.execution not in EXECUTIONS:
            raise UserError(f'--execution is {", ".join(EXECUTIONS[:-1])} or {EXECUTIONS[-1]}, not {args.execution}')
        if args.batch_size is not None and args.execution != 'auto':
            raise UserError('--batch_size is for --execution=auto')
        for name in ('num_classes', 'round_to', 'batch_size'):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise UserError(f'--{name} must be at least 1, not {getattr(args, name)}')
        return ConvertRunner(args.model, args.checkpoint, pathlib.Path(args.output), input_shape, args.num_classes,
                             args.mode, args.round_to, args.execution, args.batch_size)

    def display_output_location(self) -> None:
        print(self.output)

    def run(self) -> None:
        plan_path = paths.plan_beside(self.output)
        common.check_outputs([self.output, plan_path], pathlib.Path(self.checkpoint), 'checkpoint')
        model, path = sources.load_model(self.model, self.checkpoint, self.num_classes)
        shape = self.input_shape or sources.known_input_shape(self.model)
        if shape is None:
            raise UserError(f'the inputs of {self.model} are not known: give --input_shape, for example 3x224x224')
        try:
            inputs = common.random_inputs(shape, self.batch_size)
            conversion = convert(model, inputs, mode=self.mode, round_to=self.round_to, execution=self.execution)
            _check_collapse(conversion, inputs)
            content = export.to_bytes(conversion.model, shape)
        except (ValueError, MemoryError) as error:
            raise UserError(f'{path} cannot be converted: {error}') from error
        _write(self.output, content, plan_path, conversion.plan)
        print('\n'.join([
            f'{self.model}, weights of {path}', '', layer_table(conversion.plan), '',
            *execution_lines(conversion.execution), *proof_lines(conversion, inputs, self.mode), '',
            *size_lines(model, conversion), '',
            f'Model: {self.output}', f'Plan: {plan_path}']))


def layer_table(plan: RemovalPlan) -> str:
    """One line per layer: its name, its output channels before and after, and what went and why, or why all stay."""
    rows = [('layer', 'channels', 'what went, and why')]
    for layer in plan.layers:
        num_kept = len(layer.keep_outputs)
        channels = f'{layer.num_outputs} -> {num_kept}' if layer.num_removed else str(num_kept)
        rows.append((layer.layer, channels, _reasons(layer)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return '\n'.join(f'{name:{widths[0]}}  {channels:>{widths[1]}}  {why}'.rstrip() for name, channels, why in rows)


def _reasons(layer: LayerPlan) -> str:
    parts = [f'{len(removed.channels)} {removed.reason}' for removed in layer.removed]
    if layer.barrier:
        parts.append(f'all stay: {layer.barrier}')
    return '; '.join(parts)


def execution_lines(execution: Execution | None) -> list[str]:
    """One line per layer that could be sparse: how it is run, its measurements and bytes; nothing if nobody asked."""
    if execution is None:
        return []
    if execution.reason:
        return [f'All layers dense: {execution.reason}', '']
    timed = execution.measured_ms is not None
    columns = ('layer', 'runs', 'density %', 'dense bytes', 'sparse bytes')
    rows = [(*columns, 'dense ms', 'sparse ms') if timed else columns]
    for layer in execution.layers:
        times = (f'{layer.dense_ms:.3f}', f'{layer.sparse_ms:.3f}') if timed else ()
        rows.append((layer.layer, layer.execution, f'{100 * layer.density:.2f}', f'{layer.dense_bytes:,}',
                     f'{layer.sparse_bytes:,}', *times))
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ['  '.join(cell.ljust(width) if column < 2 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
    if timed:
        threads = 'thread' if execution.num_threads == 1 else 'threads'
        lines += ['', f'Layers with {execution.block_size} inputs, the model with {execution.batch_size}, '
                  f'{execution.num_threads} {threads}: {execution.dense_ms:.2f} ms all dense, '
                  f'{execution.measured_ms:.2f} ms as chosen ({execution.predicted_ms:.2f} ms predicted by the layers)']
    return [*lines, '']


def proof_lines(conversion: Conversion, inputs: torch.Tensor, mode: str) -> list[str]:
    """The pruned model against the given one, and how much of the difference is due to what."""
    lines = [
        f'Check in float64, on {len(inputs)} random inputs of {common.by(inputs.shape[1:])}:',
        *common.comparison_lines(conversion.report),
        f'    fusion by itself     {conversion.fusion.max_abs_difference:.3g} (rounding of the fused weights)',
        f'    removal by itself    {conversion.removal.max_abs_difference:.3g} (carried out in float64)']
    if conversion.rounding:
        lines += ['On the sparse kernels, in float32, against the given model in float64:',
                  *common.comparison_lines(conversion.rounding)]
    if mode == 'paper':
        lines += ['    --mode=paper drops the constants that removed channels emit: the difference is what that does.',
                  '    --mode=exact keeps them.']
    return lines


def size_lines(model: nn.Module, conversion: Conversion) -> list[str]:
    """Parameters, bytes (with the buffers) and times."""
    num_before, num_after = num_params(model), num_params(conversion.model)
    bytes_before, bytes_after = size_bytes(model), size_bytes(conversion.model)
    return [f'Channels    {conversion.plan.num_removed:,} removed',
            f'Parameters  {num_before:,} -> {num_after:,} ({num_before / num_after:.2f}x smaller)',
            f'Bytes       {bytes_before:,} -> {bytes_after:,} ({bytes_before / bytes_after:.2f}x smaller)',
            f'Times       capture {conversion.capture_time_ms:.0f} ms, analysis {conversion.analysis_time_ms:.0f} ms, '
            f'rebuilding {conversion.rebuilding_time_ms:.0f} ms, '
            + (f'choosing {conversion.choosing_time_ms:.0f} ms, ' if conversion.execution else '')
            + f'checking {conversion.verifying_time_ms:.0f} ms']


def _write(output: pathlib.Path, content: bytes, plan_path: pathlib.Path, plan: RemovalPlan) -> None:
    """Both files, or neither. A crash at the last moment leaves a model without a plan, never with another's."""
    with write_atomically(plan_path) as plan_file, write_atomically(output, 'wb') as model_file:
        json.dump(plan.to_dict(), plan_file)
        model_file.write(content)
        plan_file.flush()
        model_file.flush()  # a full disk shows by now
        plan_path.unlink(missing_ok=True)  # of the two, the model is renamed first


def _check_collapse(conversion: Conversion, inputs: torch.Tensor) -> None:
    names = collapsed_at(analyse(structure_of(conversion.fused, trace_shapes(conversion.fused, [inputs[:1]]))))
    if names:
        raise ValueError(f"every output of the model is constant: nothing of the input gets past "
                         f"{' and '.join(map(repr, names))}. Prune less, or keep some weights of that layer")
