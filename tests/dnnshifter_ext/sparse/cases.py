"""Layers and inputs for the tests of sparse layers, and what torch's own convolution makes of them in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
import torch
from torch import nn
from torch.nn import functional

TOLERANCE = 1e-5  # of the range of the outputs
BATCHES = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33)
CLAMPS = ((None, None), (0.0, None), (0.0, 6.0), (None, 0.5), (-0.25, 0.25))

# How an input (N, C, H, W) may lie in memory: from its shape and a source of numbers.
LAYOUTS: dict[str, Callable] = {
    'contiguous': lambda make, n, c, h, w: make(n, c, h, w),
    'images innermost': lambda make, n, c, h, w: make(c, h, w, n).permute(3, 0, 1, 2),
    'channels_last': lambda make, n, c, h, w: make(n, c, h, w).contiguous(memory_format=torch.channels_last),
    'transposed': lambda make, n, c, h, w: make(n, c, w, h).transpose(2, 3),
    'sliced': lambda make, n, c, h, w: make(2 * n, c + 1, h, 2 * w)[::2, 1:, :, ::2],
    'a slice of images innermost': lambda make, n, c, h, w: make(c, h, w, n + 3).permute(3, 0, 1, 2)[2:n + 2],
    'expanded': lambda make, n, c, h, w: make(1, c, h, w).expand(n, c, h, w),
}


def quickly(num_examples: int) -> settings:
    """The same examples every time."""
    return settings(max_examples=num_examples, derandomize=True, database=None, deadline=None,
                    suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Case:
    """A convolution and its input. density: share of the weights that stay; empty: of the filters that have none.

    pool: 2 for a max pool of 2x2 at the end, where that leaves anything.
    """

    inputs_per_group: int = 1
    outputs_per_group: int = 1
    groups: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    bias: bool = True
    density: float = 1.0
    empty: float = 0.0
    clamp: tuple[float | None, float | None] = (None, None)
    pool: int = 1
    image: tuple[int, int] = (8, 8)
    batch: int = 1
    layout: str = 'contiguous'
    num_threads: int = 1
    seed: int = 0

    def layer(self) -> nn.Conv2d:
        layer = nn.Conv2d(
            self.groups * self.inputs_per_group, self.groups * self.outputs_per_group, self.kernel, self.stride,
            self.padding, self.dilation, self.groups, self.bias).eval().requires_grad_(False)
        fill(layer, self.density, self.empty, self._generator())
        return layer

    def images(self) -> torch.Tensor:
        generator = self._generator()
        return LAYOUTS[self.layout](lambda *shape: torch.randn(shape, generator=generator), self.batch,
                                    self.groups * self.inputs_per_group, *self.image)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def fill(layer: nn.Conv2d | nn.Linear, density: float, empty: float, generator: torch.Generator) -> None:
    """Random weights, sparse, such that as much comes out as goes in."""
    weight = layer.weight.normal_(generator=generator)
    weight *= torch.rand(weight.shape, generator=generator) < density
    weight *= (torch.rand(len(weight), generator=generator) >= empty).view(-1, *[1] * (weight.dim() - 1))
    weight /= math.sqrt(max(density * weight[0].numel(), 1))
    if layer.bias is not None:
        layer.bias.normal_(generator=generator)


@st.composite
def cases(draw) -> Case:
    """Convolutions of all kinds, on images at which they leave at least one pixel."""
    one = st.sampled_from
    kernel, dilation = draw(st.tuples(*[one((3, 1, 2, 5, 4, 7))] * 2)), draw(st.tuples(*[one((1, 1, 2, 3))] * 2))
    reach = tuple(step * (size - 1) for size, step in zip(kernel, dilation))
    padding = draw(one(('pair', 'pair', 'same', 'valid')))
    padding = draw(st.tuples(*(st.integers(0, size + 1) for size in reach))) if padding == 'pair' else padding
    added = (0, 0) if padding == 'valid' else reach if padding == 'same' else tuple(2 * size for size in padding)
    return Case(
        inputs_per_group=draw(one((4, 1, 2, 3, 9))), outputs_per_group=draw(one((5, 1, 2, 3, 17))),
        groups=draw(one((1, 1, 2, 3, 6))), kernel=kernel,
        stride=(1, 1) if padding == 'same' else draw(st.tuples(*[one((1, 2, 1, 3, 4))] * 2)),
        padding=padding, dilation=dilation, bias=draw(st.booleans()),
        density=draw(one((0.3, 0.1, 1.0, 0.02, 0.0, 0.7))), empty=draw(one((0.0, 0.0, 0.5, 0.9))),
        clamp=draw(one(CLAMPS)), pool=draw(one((1, 2))),
        image=tuple(draw(st.integers(max(size + 1 - more, 1), max(size + 1 - more, 1) + 25))
                    for size, more in zip(reach, added)),
        batch=draw(one(BATCHES)), layout=draw(one(tuple(LAYOUTS))), num_threads=draw(one((1, 1, 2, 3))),
        seed=draw(st.integers(0, 1 << 16)))


def clamped(y: torch.Tensor, clamp: tuple[float | None, float | None]) -> torch.Tensor:
    return y if clamp == (None, None) else y.clamp(*clamp)


def expected_of(
    layer: nn.Module, x: torch.Tensor, clamp: tuple[float | None, float | None], pool: int = 1,
) -> torch.Tensor:
    """What torch makes of it, in float64; `layer` is in float64 from now on."""
    y = clamped(layer.double()(x.double().contiguous()), clamp)
    return y if pool == 1 else functional.max_pool2d(y, pool)


def is_too_small_for_its_pool(case: Case) -> bool:
    return case.pool > min(case.layer()(case.images()[:1]).shape[2:])


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the rounding of float32, as a share of the range, or of the size where that is larger."""
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    scale = max(float(expected.max() - expected.min()), float(expected.abs().max()), 0.1)
    assert float((actual - expected).abs().max()) <= TOLERANCE * scale  # false for NaN
