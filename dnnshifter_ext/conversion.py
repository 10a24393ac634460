"""The converter: a sparse model in, a smaller dense one that computes the same out, with the proof."""

from __future__ import annotations

from collections.abc import Sequence
import copy
from dataclasses import dataclass
import time

import torch
from torch import fx, nn

from dnnshifter_ext.fuse import fuse_conv_bn
from dnnshifter_ext.graph import capture, trace_shapes
from dnnshifter_ext.layers_in_c import load_loops
from dnnshifter_ext.plan import RemovalPlan
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.removal import plan_removal
from dnnshifter_ext.sparse.choice import EXECUTIONS, Execution, with_execution
from dnnshifter_ext.structure import structure_of
from dnnshifter_ext.verify import EXACT_TOLERANCE, Comparison, compare_outputs, outputs_as_run, outputs_of

# Share of the range of the outputs: the weights that are handed out are rounded to their own type.
ROUNDING_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Conversion:
    """A converted model and all that is known about the conversion.

    model: the pruned model, with its layers run as `execution` says; pruned: all its layers dense;
    fused: the sparse one with batch norms fused, all its channels there.
    execution: which layers of `model` run on sparse kernels and why; None if only dense ones were asked for.
    report: `pruned` against the model that was handed in, both in float64.
    rounding: `model`, run as it is in float32, against the same; None where that would say nothing new.
    fusion: the fused model against that one: what the rounding of the fused weights does by itself.
    removal: the same conversion carried out in float64 against that one: the proof, free of rounding.
    capture_time_ms: tracing, shapes, and which channels go together, whatever the weights are; analysis_time_ms: what
    is constant, what is read, and the plan;
    rebuilding_time_ms: fusing and removal; choosing_time_ms: the choice of the execution, with its measurements;
    verifying_time_ms: the three comparisons.
    """

    model: nn.Module
    pruned: fx.GraphModule
    fused: fx.GraphModule
    plan: RemovalPlan
    report: Comparison
    fusion: Comparison
    removal: Comparison
    rounding: Comparison | None
    capture_time_ms: float
    analysis_time_ms: float
    rebuilding_time_ms: float
    choosing_time_ms: float
    verifying_time_ms: float
    execution: Execution | None

    @property
    def conversion_time_ms(self) -> float:
        """Fusing, analysis, plan and removal together."""
        return self.analysis_time_ms + self.rebuilding_time_ms


def convert(model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor], *, mode: str = 'exact',
            round_to: int = 1, execution: str = 'dense') -> Conversion:
    """`model` without the channels its zero weights make superfluous; the model itself is untouched.

    example_inputs: what the model is called with (a batch, or one tensor per argument), for shapes and the proof.
    mode: 'exact', or 'paper' for the published rule, which loses the constants of the channels it removes.
    round_to: keep channels that could go until layers have a multiple of this many.
    execution: 'dense'; 'sparse' for kernels that touch only the weights that are left, in every layer that has a sparse
    form; or 'auto' for whatever is fastest on this machine, measured with the example inputs (their number matters).
    Raises ValueError if the model cannot be traced, if it cannot run on the example inputs, or, in exact mode, if
    the outputs differ by more than rounding explains: a wrong model is never returned.
    """
    if execution not in EXECUTIONS:
        raise ValueError(f"there is no execution '{execution}'; there are {', '.join(EXECUTIONS)}")
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else tuple(example_inputs)
    load_loops()
    begin_s = time.perf_counter()
    captured = capture(model)
    structure = structure_of(captured, trace_shapes(captured, [part[:1] for part in inputs]))
    captured_s = time.perf_counter()
    plan = plan_removal(structure, mode=mode, round_to=round_to)
    planned_s = time.perf_counter()
    pruned = apply_plan(captured, plan, structure.facts)
    rebuilt_s = time.perf_counter()
    final, chosen = (pruned, None) if execution == 'dense' else with_execution(pruned, inputs, execution)
    chosen_s = time.perf_counter()
    outputs = outputs_of(model, example_inputs)
    report = compare_outputs(outputs, outputs_of(pruned, example_inputs))
    fused = fuse_conv_bn(captured)
    fusion = compare_outputs(outputs, outputs_of(fused, example_inputs))
    in_float64 = apply_plan(copy.deepcopy(captured).double(), plan)
    removal = compare_outputs(outputs, outputs_of(in_float64, example_inputs))
    # An ill-conditioned model magnifies rounding, that of fused weights too.
    is_rounding = report.within(ROUNDING_TOLERANCE) or report.max_abs_difference <= 2 * fusion.max_abs_difference
    if mode == 'exact' and not (is_rounding and removal.within(EXACT_TOLERANCE)):
        raise ValueError(
            f'{type(model).__name__}: the converted model differs by {report.max_abs_difference:.3g} '
            f'where the outputs range over {report.output_range:.3g} '
            f'(fusion alone: {fusion.max_abs_difference:.3g}, '
            f'the same conversion in float64: {removal.max_abs_difference:.3g}); it is thrown away')
    rounding = None
    if final is not pruned:
        rounding = compare_outputs(outputs, outputs_as_run(final, example_inputs))
        if not rounding.within(ROUNDING_TOLERANCE):
            of_dense = compare_outputs(outputs, outputs_as_run(pruned, example_inputs))
            if not rounding.max_abs_difference <= 2 * of_dense.max_abs_difference:  # or NaN
                raise ValueError(
                    f'{type(model).__name__}: on sparse kernels it differs by {rounding.max_abs_difference:.3g} '
                    f'where the outputs range over {rounding.output_range:.3g} '
                    f"(dense: {of_dense.max_abs_difference:.3g}); convert with execution='dense'")
    return Conversion(
        model=final, pruned=pruned, fused=fused, plan=plan, execution=chosen,
        report=report, fusion=fusion, removal=removal, rounding=rounding,
        capture_time_ms=(captured_s - begin_s) * 1e3,
        analysis_time_ms=(planned_s - captured_s) * 1e3,
        rebuilding_time_ms=(rebuilt_s - planned_s) * 1e3,
        choosing_time_ms=(chosen_s - rebuilt_s) * 1e3,
        verifying_time_ms=(time.perf_counter() - chosen_s) * 1e3)
