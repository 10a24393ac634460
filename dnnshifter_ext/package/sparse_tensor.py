"""A float32 tensor by its non-zeros. Needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

_MAGNITUDE = np.uint32(0x7fffffff)  # all bits of a float32 but its sign


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """The same bits as a dense one.

    positions (K,): where the non-zeros are in the flat tensor (C order), ascending; int32, int64 from 2**31 elements.
    values (K,) float32: none of them 0.0 or -0.0; NaNs with their payload.
    zero_flips (F,) int64: the other elements are 0.0 from the start, -0.0 from flat position zero_flips[0] on, 0.0 from
    zero_flips[1] on, and so forth; ascending. In a sum they add nothing, so arithmetic may ignore them.
    """

    shape: tuple[int, ...]
    positions: np.ndarray
    values: np.ndarray
    zero_flips: np.ndarray

    @property
    def size(self) -> int:
        """Number of elements, the zeros among them."""
        return math.prod(self.shape)

    @classmethod
    def from_dense(cls, dense: np.ndarray) -> SparseTensor:
        """Raises TypeError unless `dense` is of float32."""
        if dense.dtype != np.float32:
            raise TypeError(f'a sparse tensor is of float32, not {dense.dtype}')
        bits = np.ascontiguousarray(dense).reshape(-1).view(np.uint32)
        is_zero = (bits & _MAGNITUDE) == 0
        positions = np.flatnonzero(~is_zero)
        zero_flips = np.zeros(0, np.int64)
        if np.count_nonzero(bits) != len(positions):  # there are -0.0
            zeros = np.flatnonzero(is_zero)
            zero_flips = zeros[np.diff(bits[zeros] != 0, prepend=False)].astype(np.int64)
        return cls(dense.shape, positions.astype(position_dtype(dense.size)),
                   bits[positions].view(np.float32), zero_flips)

    def to_dense(self) -> np.ndarray:
        """A new array of float32."""
        if len(self.zero_flips):
            lengths = np.diff(self.zero_flips, prepend=0, append=self.size)
            dense = np.repeat(np.resize(np.array([0.0, -0.0], np.float32), len(lengths)), lengths)
        else:
            dense = np.zeros(self.size, np.float32)
        # As integers: not every processor copies a signalling NaN's bits when it copies floats.
        dense.view(np.uint32)[self.positions] = self.values.view(np.uint32)
        return dense.reshape(self.shape)


def position_dtype(size: int) -> np.dtype:
    """What positions in a tensor of `size` elements are held in."""
    return np.dtype(np.int32 if size < 2**31 else np.int64)
