"""The weights that are left in a convolution or a linear layer, filter by filter."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

MAX_POSITIONS = 1 << 16


@dataclass(frozen=True)
class SparseFilters:
    """6 bytes a non-zero weight, and 4 an out-channel.

    shape: that of the dense weight, (O, I / groups, *kernel).
    pointers: (O + 1,) int32, where the weights of each filter begin, and the end of the last.
    positions: (num_nonzero,) uint16, of each weight in its filter, flat, in rising order.
    values: (num_nonzero,) float32.
    """

    shape: tuple[int, ...]
    pointers: np.ndarray
    positions: np.ndarray
    values: np.ndarray

    @classmethod
    def from_dense(cls, weight: np.ndarray) -> SparseFilters:
        """The non-zero entries of `weight`, (O, I / groups, *kernel) float32.

        Raises ValueError when a filter has more than 65,536 positions.
        """
        rows = weight.reshape(len(weight), -1)
        flat = np.flatnonzero(rows != 0)
        return cls.from_flat(weight.shape, flat, rows.reshape(-1)[flat])

    @classmethod
    def from_flat(cls, shape: tuple[int, ...], flat: np.ndarray, values: np.ndarray) -> SparseFilters:
        """From positions in the whole dense weight, in rising order. Raises ValueError as `from_dense` does."""
        per_filter = _weights_per_filter(shape)
        starts = np.arange(shape[0] + 1) * per_filter
        pointers = np.searchsorted(flat, starts.astype(flat.dtype) if starts[-1] < 2**31 else starts).astype(np.int32)
        positions = flat.astype(np.uint16)  # modulo 2**16, like the difference; a remainder takes four times as long
        positions -= np.repeat(starts[:-1].astype(np.uint16), np.diff(pointers))
        return cls(tuple(shape), pointers, positions, np.ascontiguousarray(values, np.float32))

    def to_dense(self) -> np.ndarray:
        """The dense weight, bit for bit but for the signs of its zeros."""
        weight = np.zeros(self.shape, np.float32)
        filters = np.repeat(np.arange(self.shape[0]), np.diff(self.pointers))
        weight.reshape(self.shape[0], -1)[filters, self.positions] = self.values
        return weight

    def check(self) -> None:
        """Raises ValueError unless the arrays fit together, so that no kernel reads past their ends."""
        per_filter = _weights_per_filter(self.shape)
        wanted = {'pointers': (np.int32, self.shape[0] + 1), 'positions': (np.uint16, self.num_nonzero),
                  'values': (np.float32, self.num_nonzero)}
        for name, (dtype, size) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != (size,) or not array.flags.c_contiguous:
                raise ValueError(
                    f'sparse weights: {name} are {array.dtype} {array.shape}, not {np.dtype(dtype)} ({size},)')
        falls = (self.pointers[1:] < self.pointers[:-1]).any()  # a difference could overflow
        if (self.pointers[0] != 0 or self.pointers[-1] != self.num_nonzero or falls
                or (self.num_nonzero and self.positions.max() >= per_filter)):
            raise ValueError('sparse weights: pointers or positions lead outside')

    @property
    def num_nonzero(self) -> int:
        return len(self.values)

    @property
    def density(self) -> float:
        """Non-zero weights / weights."""
        return self.num_nonzero / max(math.prod(self.shape), 1)

    @property
    def nbytes(self) -> int:
        return self.pointers.nbytes + self.positions.nbytes + self.values.nbytes


def _weights_per_filter(shape: tuple[int, ...]) -> int:
    per_filter = math.prod(shape[1:])
    if per_filter > MAX_POSITIONS:
        raise ValueError(f'a filter of {per_filter} weights is too large to be sparse: at most {MAX_POSITIONS}')
    return per_filter
