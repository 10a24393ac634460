"""The rim: a level of a lottery ticket experiment, from its files to those of the pruned model; the summary.

Each level gets three files; profile.json comes last, so that its presence marks the level as done. Everything
runs on the side: the random generators are left as they were found, the experiment's own files are only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import itertools
import json
import os

import torch
from torch import nn

from dnnshifter_ext import export, paths, portfolio
from dnnshifter_ext.conversion import Conversion, convert
from dnnshifter_ext.graph import capture, trace_shapes
from dnnshifter_ext.profiler import Profile, profile_together
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.removal import plan_removal
from dnnshifter_ext.structure import structure_of
from open_lth.datasets import registry as datasets_registry
from open_lth.foundations.errors import UserError
from open_lth.foundations.files import write_atomically
from open_lth.foundations.rng import preserve_rng_state
from open_lth.lottery.desc import LotteryDesc
from open_lth.models import registry as models_registry
from open_lth.platforms.platform import get_platform
from open_lth.pruning.mask import Mask
from open_lth.pruning.pruned_model import PrunedModel, load_mask_for

NUM_EXAMPLES_VERIFIED = 16


def is_converted(desc: LotteryDesc, replicate: int, level: int) -> bool:
    """True if the level's files are all there."""
    return os.path.exists(paths.profile(paths.level_directory(desc, replicate, level)))


def require_trained(desc: LotteryDesc, replicate: int, level: int) -> None:
    """Raises UserError unless the level's mask and its model at the end of the training are there."""
    location = desc.run_path(replicate, level)
    if not (Mask.exists(location) and models_registry.exists(location, desc.train_end_step)):
        raise UserError(f'level {level} is not trained: {location} has no mask or no model of the last step. '
                        'Run `lottery` up to this level first.')


def convert_level(desc: LotteryDesc, replicate: int, level: int) -> None:
    """Converts and profiles one trained level and writes its files; a level that is done already is skipped.

    Raises UserError when the level has not been trained, or when its model cannot be converted.
    """
    if is_converted(desc, replicate, level):
        return
    require_trained(desc, replicate, level)
    with preserve_rng_state():
        location = desc.run_path(replicate, level)
        model = models_registry.load(location, desc.train_end_step, desc.model_hparams, desc.train_outputs)
        mask = load_mask_for(model, location)
        model = PrunedModel(model, mask).model.eval()  # now with the mask multiplied in
        test_loader = datasets_registry.get(desc.dataset_hparams, train=False)
        batches = iter(test_loader)
        first = next(batches)
        inputs = first[0][:NUM_EXAMPLES_VERIFIED].cpu()
        with _naming(level, location):
            conversion = convert(model, inputs, execution='auto')
            num_params_paper_rule = _num_params_by_the_paper(model, inputs)
        profiles = profile_together(
            {'unfused': model, 'fused': conversion.fused, 'pruned': conversion.pruned}
            | ({'hybrid': conversion.model} if conversion.model is not conversion.pruned else {}), inputs.shape[1:],
            itertools.chain([first], batches), device=get_platform().torch_device)
    with _naming(level, location):
        _write(paths.level_directory(desc, replicate, level), conversion,
               _summary_of_level(level, mask, conversion, profiles)
               | {'num_params_paper_rule': num_params_paper_rule}, inputs.shape[1:])


def summarise(desc: LotteryDesc, replicate: int, levels: Iterable[int]) -> str:
    """The table of all converted levels among `levels`, as text; writes portfolio.csv and portfolio.png.

    Raises UserError when none of the levels has been converted.
    """
    rows = [_read_row(desc, replicate, level) for level in levels if is_converted(desc, replicate, level)]
    directory = paths.run_directory(desc, replicate)
    if not rows:
        raise UserError(f'none of the levels in {directory} has been converted')
    frame = portfolio.to_frame(rows)
    title = f'{desc.model_hparams.model_name} on {desc.dataset_hparams.dataset_name}, replicate {replicate}'
    with write_atomically(paths.portfolio_table(directory), mode='w') as file:
        frame.to_csv(file, index=False, lineterminator='\n')
    with write_atomically(paths.portfolio_figure(directory), mode='wb') as file:
        portfolio.figure(frame, title).savefig(file, format='png', dpi=150)
    return portfolio.text_table(frame)


def report(desc: LotteryDesc, replicate: int, levels: Iterable[int]) -> str:
    """What the user is shown at the end: the table, and where the files are, which `summarise` writes."""
    table = summarise(desc, replicate, levels)
    directory = paths.run_directory(desc, replicate)
    return '\n'.join(['', table, '', f'Table: {paths.portfolio_table(directory)}',
                      f'Figure: {paths.portfolio_figure(directory)}'])


@contextlib.contextmanager
def _naming(level: int, location: str) -> Iterator[None]:
    """Turns the core's ValueErrors, which know no files, into a UserError that names the level."""
    try:
        yield
    except ValueError as error:
        raise UserError(f'level {level} in {location} cannot be converted: {error}') from error


def _num_params_by_the_paper(model: nn.Module, inputs: torch.Tensor) -> int:
    """What the published rule would store (at other outputs than the sparse model's)."""
    captured = capture(model)
    structure = structure_of(captured, trace_shapes(captured, [inputs[:1]]))
    plan = plan_removal(structure, mode='paper')
    return sum(p.numel() for p in apply_plan(captured, plan, structure.facts).parameters())


def _summary_of_level(level: int, mask: Mask, conversion: Conversion, profiles: dict[str, Profile]) -> dict:
    return {
        'level': level,
        'num_prunable': mask.num_total,
        'num_kept': mask.num_kept,
        'compression_ratio': mask.num_total / max(mask.num_kept, 1),
        **{name: profile.to_dict() for name, profile in profiles.items()},
        'capture_time_ms': conversion.capture_time_ms,
        'analysis_time_ms': conversion.analysis_time_ms,
        'rebuilding_time_ms': conversion.rebuilding_time_ms,
        'conversion_time_ms': conversion.conversion_time_ms,
        'verifying_time_ms': conversion.verifying_time_ms,
        'comparison': conversion.report.to_dict(),
        'comparison_of_fusion_alone': conversion.fusion.to_dict(),
        'comparison_of_removal_alone_in_float64': conversion.removal.to_dict(),
        'comparison_of_hybrid_in_float32': conversion.rounding.to_dict() if conversion.rounding else None,
        'num_channels_removed': conversion.plan.num_removed,
        'execution': conversion.execution.to_dict(),
    }


def _write(directory: str, conversion: Conversion, summary: dict, input_shape: Sequence[int]) -> None:
    os.makedirs(directory, exist_ok=True)
    export.save(conversion.pruned, paths.model(directory), input_shape)
    with write_atomically(paths.plan(directory), mode='w') as file:
        json.dump(conversion.plan.to_dict(), file)
    with write_atomically(paths.profile(directory), mode='w') as file:
        json.dump(summary, file, indent=4)


def _read_row(desc: LotteryDesc, replicate: int, level: int) -> portfolio.Row:
    path = paths.profile(paths.level_directory(desc, replicate, level))
    try:
        with open(path) as file:
            data = json.load(file)
        return portfolio.Row(
            level=data['level'], compression_ratio=data['compression_ratio'],
            **{name: Profile.from_dict(data[name]) for name in ('unfused', 'fused', 'pruned')},
            hybrid=Profile.from_dict(data['hybrid']) if data.get('hybrid') else None,
            num_sparse_layers=sum(layer['execution'] == 'sparse' for layer in data['execution']['layers']),
            num_params_paper_rule=data['num_params_paper_rule'], conversion_time_ms=data['conversion_time_ms'],
            max_abs_difference=data['comparison']['max_abs_difference'])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f'{type(error).__name__}: {error}'
        raise UserError(f'{path} is damaged ({reason}); delete it to make it again') from error
