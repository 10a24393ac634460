"""What a package takes, and how fast a variant comes out of it, beside zlib on a state dict, measured in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.package [--checkpoints=FOLDER] [--only=NAME,...] [--halve=NAME,...]
                                                   [--rounds=N] [--output=FILE.json]

Each sparse network is converted first; both ways store the converted model. --halve adds networks whose smallest half
of weights (global magnitude) is pruned once more. The plain way: torch.save of the state dict, zlib at level 6; then
zlib, torch.load and load_state_dict into a model that is there. Ours: a package of that one variant, without a profile;
to the sparse form (vectors dense), to dense arrays, and on to a model of torch. Times are of one thread, in turn in
every round, after a round that is not counted; a ratio is that of the same round. Entropy of positions: if non-zeros
lay in independent places, with the density of their tensor.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import asdict, dataclass
import io
import statistics
import sys
import time
import zlib

import numpy as np
import torch
from torch import nn

from benchmarks import checkpoints, output
from benchmarks.convert import choose, machine
import dnnshifter_ext
from dnnshifter_ext.package import PackedVariant, deflate, models, read, write
from open_lth.foundations.errors import UserError
from open_lth.pruning import sparse_global
from open_lth.pruning.mask import Mask

HALVED = ', halved'
WAYS = PLAIN, SPARSE, DENSE, MODEL = 'zlib-6 to model', 'to sparse', 'to dense', 'to model'


@dataclass(frozen=True)
class Result:
    """One network. Times per way, one per round; bytes of the whole package, and of what is in its sparse tensors."""

    name: str
    num_params: int
    num_nonzero: int
    package_bytes: int
    plain_bytes: int
    position_bytes: int
    position_entropy_bytes: float
    value_bits: float
    pack_s: float
    plain_pack_s: float
    times_ms: dict[str, list[float]]


def measure(name: str, model: nn.Module, inputs: torch.Tensor, input_shape: Sequence[int], rounds: int) -> Result:
    """Converts, packs, and takes out again, which is checked bit for bit."""
    converted = dnnshifter_ext.convert(model, inputs).model
    variant = models.variant('variant', converted, {}, input_shape)
    content, pack_s = _timed(lambda: write([variant]))
    [packed] = read(content).variants
    for key, array in variant.tensors.items():
        if packed.dense(key).tobytes() != array.tobytes() or (
                array.dtype == np.float32 and packed.sparse(key).to_dense().tobytes() != array.tobytes()):
            raise AssertionError(f'{key} came back with other bits')
    plain, plain_pack_s = _timed(lambda: zlib.compress(_state(converted), 6))
    ways = {
        PLAIN: lambda: converted.load_state_dict(torch.load(io.BytesIO(zlib.decompress(plain)), weights_only=True)),
        SPARSE: lambda: [packed.sparse(key) if tensor.is_sparse else packed.dense(key)
                         for key, tensor in packed.tensors.items()],
        DENSE: lambda: [packed.dense(key) for key in packed.tensors],
        MODEL: lambda: models.rebuild(packed)}
    return Result(
        name, sum(array.size for array in variant.tensors.values()),
        sum(int(np.count_nonzero(array)) for array in variant.tensors.values()), len(content), len(plain),
        *_parts(packed), pack_s, plain_pack_s, _in_turn(ways, rounds))


def _parts(packed: PackedVariant) -> tuple[int, float, float]:
    """(bytes of positions, their entropy in bytes, bits per value) of the tensors that are stored sparse."""
    position_bytes, entropy_bits, value_bytes, num_values = 0, 0.0, 0, 0
    for key, tensor in packed.tensors.items():
        if tensor.is_sparse:
            streams = [packed_bytes for packed_bytes, _ in packed._blocks[key].sizes]
            position_bytes += streams[0]
            value_bytes += sum(streams[1:5])
            num_values += tensor.layout.num_values
            share = tensor.layout.num_values / tensor.size
            if 0 < share < 1:
                entropy_bits -= tensor.size * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return position_bytes, entropy_bits / 8, 8 * value_bytes / max(1, num_values)


def _state(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getvalue()


def _in_turn(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    times_ms: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            times_ms[name].append(_timed(way)[1] * 1e3)
    return {name: times[1:] for name, times in times_ms.items()}


def _timed(work: Callable[[], object]) -> tuple[object, float]:
    start_s = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start_s


def halve(model: nn.Module) -> None:
    """Prunes the smallest half of the weights that are left."""
    state = model.state_dict()
    left = Mask({name: (state[name] != 0).float() for name in model.prunable_layer_names})
    hparams = sparse_global.PruningHparams(pruning_strategy='sparse_global', pruning_fraction=0.5)
    mask = sparse_global.Strategy.prune(hparams, model, left)
    with torch.no_grad():
        for name, keep in mask.items():
            state[name][keep == 0] = 0


def networks(folder: str | None, only: str | None, halved: str | None) -> Iterator[tuple]:
    """(name, model, inputs, shape of one input), made when it is their turn. Raises UserError."""
    chosen = choose(folder, only)
    again = halved.split(',') if halved else []
    unknown = set(again) - {checkpoint.name for checkpoint in chosen}
    if unknown:
        raise UserError(f"--halve: there is no '{min(unknown)}'")
    for checkpoint in chosen:
        for is_halved in (False, True)[:1 + (checkpoint.name in again)]:
            model = checkpoint.load()
            if is_halved:
                halve(model)
            inputs = checkpoint.inputs(2)
            yield checkpoint.name + HALVED * is_halved, model, inputs, tuple(inputs.shape[1:])


def report(result: Result) -> str:
    """What was measured, in lines."""
    plain = result.times_ms[PLAIN]
    lines = [
        f'{result.name}: {result.num_params:,} parameters, {result.num_nonzero:,} not zero',
        f'    package           {result.package_bytes:>12,} bytes, {_per_value(result):.2f} bits per non-zero, '
        f'packed in {result.pack_s:.1f} s',
        f'    zlib-6            {result.plain_bytes:>12,} bytes, {result.plain_bytes / result.package_bytes:.2f} times '
        f'as many, packed in {result.plain_pack_s:.1f} s',
        f'    positions         {result.position_bytes:>12,} bytes, entropy {result.position_entropy_bytes:,.0f}',
        f'    values            {result.value_bits:>12.2f} bits each, of 32']
    for way in WAYS:
        times = result.times_ms[way]
        ratios = [before / after for before, after in zip(plain, times)]
        lines.append(f'    {way:<17} {statistics.median(times):>12.1f} ms ({min(times):.1f}-{max(times):.1f})'
                     + ('' if way == PLAIN else f', {statistics.median(ratios):.1f} times as fast '
                        f'({min(ratios):.1f}-{max(ratios):.1f})'))
    return '\n'.join(lines)


def _per_value(result: Result) -> float:
    return 8 * result.package_bytes / max(1, result.num_nonzero)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For both ways."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser('python -m benchmarks.package', description=__doc__.splitlines()[0])
    parser.add_argument('--checkpoints', help='folder of NAME.npz, a state dict each; NAME begins with '
                        f'{" or ".join(checkpoints.NETWORKS)} (without it: random ones, made here)')
    parser.add_argument('--only', help='names of checkpoints, with commas between')
    parser.add_argument('--halve', help='names of checkpoints to be pruned once more, in addition')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--output', help='a JSON file of everything that was measured')
    args = parser.parse_args(argv)
    results = []
    try:
        if args.rounds < 1:
            raise UserError(f'--rounds must be at least 1, not {args.rounds}')
        output.require_folder(args.output)
        with one_thread():
            used = machine() | {'inflating with': deflate.LIBRARY}
            print(', '.join(f'{key} {value}' for key, value in used.items()), flush=True)
            for network in networks(args.checkpoints, args.only, args.halve):
                results.append(measure(*network, rounds=args.rounds))
                print(f'\n{report(results[-1])}', flush=True)
    except UserError as error:
        sys.exit(f'error: {error}')
    output.write(args.output, {'machine': used, 'arguments': vars(args), 'results': [asdict(r) for r in results]})


if __name__ == '__main__':
    main()
