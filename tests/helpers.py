"""What several tests need: running commands in this process, and the fingerprints of the golden vectors."""

import contextlib
import dataclasses
import hashlib
import io
import json
import pathlib
import sys
from unittest import mock

import numpy as np
import pytest
import torch

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = REPOSITORY / 'tests' / 'golden'
FASHION = pathlib.Path('/usr/share/datasets/fashion-mnist')
needs_fashion = pytest.mark.skipif(
    not FASHION.is_dir(), reason=f'{FASHION} is absent: install the package dataset-fashion-mnist')

SAME_TORCH = torch.__version__.split('+')[0] == '2.15.0'  # the version that made the golden vectors


def load_golden(name):
    return json.loads((GOLDEN / f'{name}.json').read_text())


# ---- running commands

@dataclasses.dataclass
class Outcome:
    """How one command ended: exit status and both streams as text."""

    status: int
    out: str
    err: str

    @property
    def error_lines(self):
        return self.err.splitlines()


class Stream(io.StringIO):
    """What a command run here writes to. A subclass, so that tests can make it a terminal."""


def run_main(*argv, entry=None):
    """Runs `open_lth.main.main()`, or another entry, on argv in this process, as a shell would see it."""

    if entry is None:
        from open_lth.main import main as entry
    out, err, status = Stream(), Stream(), 0
    with (mock.patch.object(sys, 'argv', ['main.py', *map(str, argv)]),
          contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)):
        try:
            entry()
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return Outcome(status, out.getvalue(), err.getvalue())


def run_engine(*argv, root, dataset_root=None, seed=None):
    """Runs one command of the engine with its folders, and its seed, given."""

    flags = [f'--root={root}']
    if dataset_root is not None:
        flags.append(f'--dataset_root={dataset_root}')
    if seed is not None:
        flags.append(f'--global_seed={seed}')
    return run_main(*argv, *flags)


def succeed(*argv, **folders):
    """The outcome of a command that has to end well."""

    outcome = run_engine(*argv, **folders)
    assert outcome.status == 0, outcome.err
    return outcome


def assert_one_line_error(outcome, *expected, status=2):
    """The command ended with the status and one line on stderr that contains every expected text."""

    assert outcome.status == status, (outcome.status, outcome.out, outcome.err)
    assert 'Traceback' not in outcome.err + outcome.out
    assert len(outcome.error_lines) == 1, outcome.err
    for text in expected:
        assert str(text) in outcome.err, (text, outcome.err)


# ---- files

def is_rng_file(path):
    """Our own addition to a run directory: generator states of finished stages."""

    return path.name.startswith('rng_') and path.suffix == '.pth'


def list_files(root):
    """Paths (relative, as text) of all files under root."""

    root = pathlib.Path(root)
    return {str(path.relative_to(root)) for path in root.rglob('*') if path.is_file()}


def artefacts(root):
    """As list_files, without the generator states, which OpenLTH does not write."""

    return {name for name in list_files(root) if not is_rng_file(pathlib.Path(name))}


def load(path):
    return torch.load(path, weights_only=True, map_location='cpu')


def content_digests(root):
    """Name of every file -> digest of what it holds; tensors by value (archives carry no time, but names)."""

    return {name: content_digest(pathlib.Path(root) / name) for name in sorted(list_files(root))}


def content_digest(path):
    digest = hashlib.sha256()
    if path.suffix == '.pth':
        _feed(digest, load(path))
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _feed(digest, value):
    """Adds a nested value to the digest: order of keys, dtypes, shapes and bits all count."""

    if isinstance(value, torch.Tensor):
        digest.update(f'{value.dtype}{tuple(value.shape)}'.encode())
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _feed(digest, item)
    elif isinstance(value, (list, tuple)):
        digest.update(type(value).__name__.encode())
        for item in value:
            _feed(digest, item)
    else:
        digest.update(repr(value).encode())


# ---- fingerprints

def tensor_bytes(tensor):
    return np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes()


def weight_fingerprint(tensor):
    """[shape, sum, sum of absolute values, first four values, 16 hex digits of sha256]."""

    flat = tensor.detach().cpu().reshape(-1)
    return [list(tensor.shape), flat.double().sum().item(), flat.double().abs().sum().item(),
            flat[:4].double().tolist(), hashlib.sha256(tensor_bytes(tensor)).hexdigest()[:16]]


def mask_fingerprint(tensor):
    """[shape, number kept, sha256 of the mask as uint8]."""

    mask = tensor.detach().cpu().to(torch.uint8)
    return [list(mask.shape), int(mask.sum()), hashlib.sha256(tensor_bytes(mask)).hexdigest()]


def int64_digest(values):
    return hashlib.sha256(np.asarray(values, dtype=np.int64).tobytes()).hexdigest()


def assert_same_weights(state, golden, *, exact, relative=1e-3):
    """The state dict has the golden keys and shapes, and the golden bits or sums close to the golden ones."""

    assert list(state) == list(golden)
    if exact:
        assert {name: weight_fingerprint(tensor) for name, tensor in state.items()} == golden
    for name, tensor in state.items():
        shape, total, absolute, *_ = weight_fingerprint(tensor)
        assert shape == golden[name][0], name
        # Biases that began at zero have almost no absolute sum to be relative to: entries count at least 0.1.
        tolerance = relative * max(golden[name][2], 0.1 * tensor.numel())
        assert total == pytest.approx(golden[name][1], abs=tolerance), name
        assert absolute == pytest.approx(golden[name][2], abs=tolerance), name


def assert_same_mask(mask, golden, *, exact, share=1e-3):
    """Every layer has the golden mask; or the total kept is the same, and each layer's up to a share or 8."""

    assert sorted(mask) == sorted(golden)
    actual = {name: mask_fingerprint(mask[name]) for name in golden}
    if exact:
        assert actual == golden
    assert sum(kept for _, kept, _ in actual.values()) == sum(kept for _, kept, _ in golden.values())
    for name, (shape, kept, _) in golden.items():
        assert actual[name][0] == shape, name
        assert abs(actual[name][1] - kept) <= max(8, share * mask[name].numel()), name


# ---- a run of a second, on digits

def tiny_desc(model='cifar_resnet_8_1', batch_size=30, dataset=None, **training):
    """A TrainingDesc with 5 iterations per epoch on a tenth of the digits (144 images)."""

    from open_lth.foundations.hparams import DatasetHparams, ModelHparams, TrainingHparams
    from open_lth.training.desc import TrainingDesc
    training = {'optimizer_name': 'sgd', 'lr': 0.1, 'training_steps': '2ep', 'momentum': 0.9} | training
    return TrainingDesc(
        ModelHparams(model, 'kaiming_normal', 'uniform'),
        DatasetHparams('digits', batch_size, **({'subsample_fraction': 0.1} | (dataset or {}))),
        TrainingHparams(**training),
    )


TINY_FLAGS = (
    '--dataset_name=digits',
    '--batch_size=30',
    '--subsample_fraction=0.1',
    '--model_name=cifar_resnet_8_1',
    '--model_init=kaiming_normal',
    '--batchnorm_init=uniform',
    '--optimizer_name=sgd',
    '--lr=0.1',
    '--momentum=0.9',
    '--training_steps=2ep',
)


def build_model(desc, seed=0):
    from open_lth.models import registry
    torch.manual_seed(seed)
    return registry.get(desc.model_hparams)


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(first, second):
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


TINY_LOTTERY = ('lottery', *TINY_FLAGS, '--pruning_strategy=sparse_global', '--quiet')


def level(root, number, branch='main', replicate=1):
    """The folder of a level of the only lottery experiment in root."""

    [folder] = pathlib.Path(root).glob(f'lottery_*/replicate_{replicate}/level_{number}')
    return folder / branch
