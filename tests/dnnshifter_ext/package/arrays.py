"""Arrays of all kinds, for hypothesis and by hand."""

from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
DTYPES = ('float64', 'float32', 'float16', 'int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8',
          'bool')
# Zeros of both signs, the smallest and the largest, infinities, NaNs with payloads, quiet and signalling; or any bits.
_BITS = st.sampled_from([0] * 12 + [2**31] * 3 + [1, 2**31 + 1, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00123,
                                                  0x7f812345, 0xffffffff, 0x3f800000]) | st.integers(0, 2**32 - 1)


def sparse_floats(shapes=SHAPES):
    """float32 with any bits, many of them zeros."""
    return hnp.arrays(np.uint32, shapes, elements=_BITS).map(lambda bits: bits.view(np.float32))


@st.composite
def any_arrays(draw):
    """Of every dtype; some are not contiguous."""
    name = draw(st.sampled_from(DTYPES))
    if name == 'float32':
        array = draw(sparse_floats())
    elif name == 'bool':
        array = draw(hnp.arrays(bool, SHAPES))
    else:
        itemsize = np.dtype(name).itemsize
        array = draw(hnp.arrays(f'u{itemsize}', SHAPES)).view(name)
    order = draw(st.permutations(range(array.ndim)))
    steps = tuple(slice(None, None, draw(st.sampled_from((1, 2, -1)))) for _ in range(array.ndim))
    return array.transpose(order)[steps]


def pruned(shape, density, seed=0):
    """Normal weights, each row with a scale of its own, of which the largest stay."""
    random = np.random.RandomState(seed)
    weights = random.randn(*shape)
    weights[abs(weights) <= np.quantile(abs(weights), 1 - density)] = 0
    scales = np.exp(random.randn(shape[0])).reshape(-1, *[1] * (len(shape) - 1))
    return (weights * scales).astype(np.float32)


def assert_same_bits(actual, expected):
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()  # both in C order
