"""The proof: two models on the same inputs, compared in float64."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import copy
from dataclasses import asdict, dataclass

import torch
from torch import nn

# Share of the range of the outputs: carried out in float64, a step is exact but for the order of its sums.
EXACT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Comparison:
    """How far the outputs of two models are apart, in float64.

    max_abs_difference: over all outputs; NaN if one of the two models answers NaN.
    output_range: largest minus smallest output of the first model; max_abs_output: its largest in size.
    changed_predictions: of `num_predictions`, how many have their largest output elsewhere, along dimension
    1.
    """

    max_abs_difference: float
    output_range: float
    max_abs_output: float
    changed_predictions: int
    num_predictions: int

    def within(self, tolerance: float) -> bool:
        """True if the largest difference is at most `tolerance` times the output range. NaN is never within.

        Where all outputs are equal, their size takes the place of the range.
        """
        return self.max_abs_difference <= tolerance * (self.output_range or self.max_abs_output)

    def to_dict(self) -> dict:
        return asdict(self)


def compare(
    before: nn.Module, after: nn.Module, inputs: torch.Tensor | Sequence[torch.Tensor],
) -> Comparison:
    """The outputs of `after` against those of `before` on `inputs` (a tensor, or one per argument).

    What is left in float64 arithmetic is the rounding of the stored weights.
    Raises ValueError when a model cannot run on the inputs or the two answer with different shapes.
    """
    return compare_outputs(outputs_of(before, inputs), outputs_of(after, inputs))


def outputs_of(model: nn.Module, inputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """All output tensors of `model` in float64 and evaluation mode; of a deep copy, unless it is that already.

    Raises ValueError when the model cannot run on the inputs.
    """
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    # Copies, because a model may work in place on its input.
    inputs = tuple(x.to(torch.float64, copy=True) if x.is_floating_point() else x.clone() for x in inputs)
    if model.training or any(tensor.is_floating_point() and tensor.dtype is not torch.float64
                             for tensor in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).double().eval()
    return _run(model, inputs)


def outputs_as_run(model: nn.Module, inputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The output tensors of `model` computed in its own type, then in float64. Raises ValueError as `outputs_of`."""
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    return [output.double() for output in _run(model, tuple(x.clone() for x in inputs))]


def _run(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    try:
        with torch.inference_mode():
            return list(_tensors(model(*inputs)))
    except (RuntimeError, TypeError, IndexError) as error:
        shapes = ', '.join(str(tuple(x.shape)) for x in inputs)
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        name = type(model).__name__
        raise ValueError(f'{name}: cannot run on inputs of shape {shapes}: {reason}') from error


def compare_outputs(outputs: list[torch.Tensor], others: list[torch.Tensor]) -> Comparison:
    """`others` against `outputs`; ValueError when the shapes differ."""
    shapes, other_shapes = [tuple(y.shape) for y in outputs], [tuple(y.shape) for y in others]
    if shapes != other_shapes:
        raise ValueError(f'the two models answer with different shapes: {shapes} and {other_shapes}')
    differences = [(y - other).abs().max() for y, other in zip(outputs, others, strict=True)]
    classified = [(y, other) for y, other in zip(outputs, others, strict=True) if y.ndim > 1]
    return Comparison(
        max_abs_difference=float(torch.stack(differences).max()),  # max passes NaN on
        output_range=float(max(y.max() for y in outputs) - min(y.min() for y in outputs)),
        max_abs_output=float(max(y.abs().max() for y in outputs)),
        changed_predictions=sum(int((y.argmax(1) != other.argmax(1)).sum()) for y, other in classified),
        num_predictions=sum(y.argmax(1).numel() for y, _ in classified))


def _tensors(output: object) -> Iterable[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    else:
        for part in output.values() if isinstance(output, dict) else output:
            yield from _tensors(part)
