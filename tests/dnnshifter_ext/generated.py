"""Hypothesis strategies that draw networks: see `networks.Network`."""

# n = length of the shortest side of an image, at the lower of the two resolutions

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.dnnshifter_ext.networks import (
    ACTIVATIONS,
    ARITHMETIC,
    BARRIERS,
    CONTAINERS,
    FLATTENINGS,
    IMAGE_CHANNELS,
    POOLS,
    RESIZINGS,
    RESOLUTIONS,
    SPLITS,
    Act,
    Cat,
    Conv,
    Gate,
    Head,
    Last,
    Learned,
    Network,
    Norm,
    Resize,
    Shuffle,
    Split,
    Steps,
    Sum,
    Twice,
    channels_after,
)
from tests.dnnshifter_ext.sparsity import Sparsity

MAX_CHANNELS = 12  # wider values are narrowed again, to keep the tests fast


def for_networks(num_networks: int, check: Callable[[Network], None]) -> None:
    """Calls `check` with that many networks, the same ones every time; a failing one is shrunk and printed.

    In batches of ten: hypothesis draws that many afresh before it turns to variants of what it has drawn.
    """
    quiet = settings(max_examples=10, database=None, deadline=None,
                     suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    for batch in range(num_networks // 10):
        seed(batch)(quiet(given(networks())(check)))()


def one(*choices: object) -> st.SearchStrategy:
    """One of the choices, of which the first is the simplest. One that is repeated is drawn more often."""
    return st.sampled_from(choices)


@st.composite
def networks(draw) -> Network:
    """Networks of a convolution and up to six parts, with one or two outputs."""
    dims = draw(one(2, 2, 1, 3))
    steps, n = draw(convs(IMAGE_CHANNELS, min(RESOLUTIONS[dims][0]))), min(RESOLUTIONS[dims][0])
    n = steps[0].side(n)
    for _ in range(draw(one(*range(7)))):
        new, n = draw(parts(channels_after(steps, IMAGE_CHANNELS), n))
        steps += new
    return Network(
        dims=dims, steps=steps, heads=tuple(draw(st.lists(heads(len(steps)), min_size=1, max_size=2))),
        container=draw(one(*CONTAINERS)), sparsity=draw(SPARSITIES))


SPARSITIES = st.builds(
    Sparsity, density=one(0.5, 0.9, 0.3, 0.7, 1.0, 0.15, 0.02), dead_filters=one(0.3, 0.3, 0.2, 0.1, 0.6, 0.0),
    dead_inputs=one(0.0, 0.0, 0.2, 0.5), lone_taps=one(0.0, 0.0, 0.5, 0.9), seed=st.integers(0, 2 ** 16))


@st.composite
def heads(draw, num_steps: int) -> Head:
    after, kind = draw(one(num_steps, num_steps, *range(1, num_steps))), draw(one(*['features'] * 4, 'map', 'raw'))
    if kind != 'features':
        return Head(after, kind)
    return Head(after, kind, draw(one(1, 2)), draw(one(*FLATTENINGS)), draw(one(0, 5)), draw(st.booleans()),
                draw(one('relu', *ACTIVATIONS)))


@st.composite
def parts(draw, channels: int, n: int) -> tuple[Steps, int]:
    """(steps, the side they leave): steps that may change the size of the image, or those that must not."""
    kind = draw(one('conv', 'conv', 'resize', 'stage', 'stage', 'other', 'other'))
    if kind == 'conv':
        steps = draw(convs(channels, n))
        return steps, steps[0].side(n)
    if kind == 'resize':
        name = draw(one(*(name for name, resizing in RESIZINGS.items() if n >= resizing.shortest)))
        return (Resize(name),), RESIZINGS[name].side(n)
    return draw(stages(channels, n)) if kind == 'stage' else (draw(same_size(channels, n, depth=2)), n)


@st.composite
def stages(draw, channels: int, n: int) -> tuple[Steps, int]:
    """A residual block with a projection, as at the start of a ResNet's stage, and up to two more on its stream."""
    stride, outputs = draw(one(1, 2)), draw(one(6, 8, 4))
    body, n = draw(bodies(channels, n, outputs=outputs, stride=stride)), -(-n // stride)
    blocks = [Sum((body, (Conv(outputs, stride=stride, bias=draw(st.booleans())), *draw(endings(n)))))]
    blocks += [draw(skips(outputs, n)) for _ in range(draw(one(0, 1, 2)))]
    return tuple(blocks), n


@st.composite
def skips(draw, channels: int, n: int, depth: int = 1) -> Sum:
    """A residual block whose shortcut is the identity."""
    return Sum(((), draw(bodies(channels, n, outputs=channels, depth=depth))), draw(one('+', '+', *ARITHMETIC)))


@st.composite
def bodies(draw, channels: int, n: int, *, outputs: int | None = None, stride: int = 1, depth: int = 1) -> Steps:
    """Steps that divide the size of the image by a stride, and lead to a number of channels."""
    steps = draw(openings(n))
    if stride == 2:
        steps, n = steps + draw(convs(channels, n, stride=2)), -(-n // 2)
    for _ in range(draw(one(0, 1, 2))):
        steps += draw(same_size(channels_after(steps, channels), n, depth=depth))
    channels = channels_after(steps, channels)
    return steps if outputs in (None, channels) else steps + draw(convs(channels, n, stride=1, outputs=outputs))


@st.composite
def openings(draw, n: int) -> Steps:
    """What a body may begin with that is dangerous where others read the same value: a norm, and work in place."""
    return draw(one(*[()] * 5, (draw(norms(n)),), (Act('x.relu_()'),), (draw(norms(n)), Act('F.relu, in place'))))


@st.composite
def same_size(draw, channels: int, n: int, *, depth: int) -> Steps:
    """Steps that leave the size of the image; those that hold others only while there is `depth`."""
    kinds = ['conv'] * 8 + ['act'] * 4 + ['norm', 'learned', 'last', 'gate'] * 2 + ['barrier']
    kinds += ['shuffle'] * 3 * (channels % 2 == 0) + ['pool'] * 4 * (n >= 3)
    if depth:
        kinds += ['skips'] * 4 + ['cat', 'twice'] * 2 + ['split'] * 2 * (channels > 1)
    kind, inner = draw(one(*kinds)), {'n': n, 'depth': depth - 1}
    if kind == 'conv':
        return draw(convs(channels, n, stride=1))
    if kind == 'act':
        return (Act(draw(one(*ACTIVATIONS))),)
    if kind == 'pool':
        return (Act(draw(one(*POOLS))),)
    if kind == 'norm':
        return (draw(norms(n)),)
    if kind == 'learned':
        return (Learned(draw(one('*', '+', '-')), draw(st.booleans())),)
    if kind == 'last':
        return (Last(draw(one(4, 6)), draw(one(0, 8)), draw(st.booleans())),)
    if kind == 'gate':
        return (Gate(draw(st.booleans()), draw(one(2, 3)), draw(st.booleans())),)
    if kind == 'barrier':
        return (Act(draw(one(*BARRIERS))),)
    if kind == 'shuffle':
        return (Shuffle(draw(one(2, channels // 2)), draw(st.booleans())),)
    if kind == 'skips':
        return tuple(draw(st.lists(skips(channels, **inner), min_size=1, max_size=3)))
    if kind == 'twice':
        body = draw(convs(channels, n, stride=1))
        body += draw(bodies(channels_after(body, channels), outputs=channels, **inner))
        return (Twice(body, draw(one('module', 'alias', 'tensors')), draw(st.booleans())),)
    if kind == 'cat':
        step = Cat(tuple(draw(st.lists(bodies(channels, **inner), min_size=1, max_size=3))))
    else:
        how = draw(one(*SPLITS))
        first = -(-channels // 2) if how in ('x.chunk', 'torch.split') else draw(st.integers(1, channels - 1))
        step = Split(how, first, (draw(bodies(first, **inner)), draw(bodies(channels - first, **inner))))
    return (step,) if step.channels(channels) <= MAX_CHANNELS else (step, Conv(6))


@st.composite
def convs(draw, channels: int, n: int, *, outputs: int | None = None, stride: int | None = None) -> Steps:
    """A convolution that fits, and what often follows one; with `stride` it divides the side by that, rounding up."""
    keeps_size = stride is not None
    kernel = draw(one(3, 1, 5) if stride == 2 else one(3, 1, 2, 5))
    dilation = draw(one(1, 2)) if kernel > 1 else 1
    reach = dilation * (kernel - 1)
    groups = draw(one(*(groups for groups in (1, 1, 1, 2, 4, channels)
                        if channels % groups == 0 and (outputs or groups) % groups == 0)))
    outputs = outputs or (draw(one(6, 4, 8, 1)) if groups == 1 else
                          groups * draw(one(*range(1, MAX_CHANNELS // groups + 1))))
    stride = stride or draw(one(1, 2))
    paddings = [reach // 2] * (reach % 2 == 0) + ['same'] * (stride == 1)
    if not keeps_size:
        paddings += [reach] + [0, 'valid'] * (n > reach)
    padding = draw(one(*paddings))
    padded = {'same': reach - reach // 2, 'valid': 0}.get(padding, padding)
    mode = draw(one('zeros', 'zeros', *['reflect', 'replicate', 'circular'] * (padded < n))) if padded else 'zeros'
    conv = Conv(outputs, kernel, stride, dilation, groups, padding, mode, draw(st.booleans()))
    return (conv, *draw(endings(conv.side(n))))


@st.composite
def endings(draw, n: int) -> Steps:
    """Perhaps a batch norm, perhaps an activation."""
    return ((draw(norms(n)),) if draw(st.booleans()) else ()) + (
        (Act(draw(one('relu', 'relu', *ACTIVATIONS))),) if draw(st.booleans()) else ())


def norms(n: int) -> st.SearchStrategy:
    """Batch norms; those that take the batch's statistics need more than one position."""
    return one(Norm(), Norm(), Norm(affine=False), Norm(running=n == 1))
