"""The command `convert`, typed as a user would: what it writes, what it says, and what it refuses."""

import errno
import itertools
import json
import os
import re
import resource
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
import torchvision

from dnnshifter_ext import conversion as conversion_module
from dnnshifter_ext import load
from dnnshifter_ext.export import to_bytes
from dnnshifter_ext.install import install
from dnnshifter_ext.plan import RemovalPlan
from dnnshifter_ext.prune import apply_plan
from dnnshifter_ext.verify import compare
from open_lth.cli import runner_registry
from open_lth.foundations.hparams import ModelHparams
from open_lth.models import registry as models_registry
from open_lth.pruning.mask import Mask
from tests import helpers
from tests.dnnshifter_ext import nets

VGG = '--model=tests.dnnshifter_ext.nets:VGG'
RESNET = '--model=tests.dnnshifter_ext.nets:ResNet'


@pytest.fixture(autouse=True)
def installed():
    install()


@pytest.fixture
def folder(tmp_path):
    """Where the checkpoint is; the output goes to its subfolder `out`."""
    (tmp_path / 'out').mkdir()
    return tmp_path


def run(folder, *flags, checkpoint='weights.pth', output='out/small.pth'):
    return helpers.run_main('convert', f'--checkpoint={folder / checkpoint}', f'--output={folder / output}', *flags)


def converted(folder, *flags, **files):
    """(the model that was written, what was printed)."""
    outcome = run(folder, *flags, **files)
    assert outcome.status == 0, outcome.err
    assert outcome.err == ''
    assert helpers.list_files(folder / 'out') == {'small.pth', 'small.plan.json'}
    return load(folder / 'out' / 'small.pth'), outcome.out


def assert_refused(folder, outcome, *expected):
    helpers.assert_one_line_error(outcome, *expected)
    assert helpers.list_files(folder / 'out') == set()
    assert outcome.out == ''


def sparse(build=nets.VGG, density=0.1):
    torch.manual_seed(0)
    return nets.sparsify(build(), density=density)


def saved(folder, model, name='weights.pth'):
    torch.save(model.state_dict(), folder / name)
    return model


def assert_same(model, small, x):
    report = compare(model, small, x)
    assert report.within(1e-5) and report.changed_predictions == 0, report
    assert nets.num_params(small) < nets.num_params(model)


# ---- what it makes

def test_a_model_of_ones_own(folder):
    model = saved(folder, sparse())
    small, out = converted(folder, VGG, '--input_shape=3x8x8')
    assert_same(model, small, nets.images())
    plan = RemovalPlan.from_dict(json.loads((folder / 'out' / 'small.plan.json').read_text()))
    narrow = {name: len(module.weight) for name, module in small.named_modules() if hasattr(module, 'weight')}
    assert {layer.layer: len(layer.keep_outputs) for layer in plan.layers} == narrow
    # The table has the same numbers, and says why.
    for layer in plan.layers:
        [line] = [line for line in out.splitlines() if line.startswith(f'{layer.layer} ')]
        if layer.num_removed:
            assert f'{layer.num_outputs} -> {len(layer.keep_outputs)}  ' in line
        assert all(f'{len(part.channels)} {part.reason}' in line for part in layer.removed)
    assert 'all stay: it feeds the output of the model' in out
    assert f'{nets.num_params(model):,} -> {nets.num_params(small):,} (' in out
    assert f'{sum(t.nbytes for t in model.state_dict().values()):,} -> ' in out
    assert 'changed predictions  0 of 16' in out and '16 random inputs of 3x8x8' in out
    assert float(re.search(r'max \|difference\| +(\S+),', out)[1]) < 1e-5
    assert float(re.search(r'removal by itself +(\S+) ', out)[1]) < 1e-12
    assert 'capture' in out and 'paper' not in out


@pytest.mark.filterwarnings('error:.*already erased')
@pytest.mark.parametrize('name', ['shufflenet_v2_x0_5', 'squeezenet1_1'])
def test_an_architecture_of_torchvision_with_any_number_of_classes(folder, name):
    model = saved(folder, sparse(lambda: torchvision.models.get_model(name, weights=None, num_classes=7), density=0.3))
    small, _ = converted(folder, f'--model={name}', '--input_shape=3x48x48')
    assert_same(model, small, nets.images(48, num=2))


def test_a_model_of_openlth_knows_its_input_shape(folder):
    model = saved(folder, sparse(lambda: models_registry.get(
        ModelHparams('cifar_resnet_8_4', 'kaiming_normal', 'uniform'), outputs=5)))
    small, out = converted(folder, '--model=cifar_resnet_8_4')
    assert 'random inputs of 3x32x32' in out
    assert_same(model, small, nets.images(32))


def test_masks_of_torch_prune_are_multiplied_in(folder):
    model = nets.VGG()
    for layer in (model.layers[0].conv, model.layers[2].conv, model.fc):
        prune.random_unstructured(layer, 'weight', 0.3)
    prune.random_structured(model.layers[2].conv, 'weight', 0.5, dim=0)
    saved(folder, model.eval())
    x = nets.images()
    with torch.no_grad():
        expected = model(x)
    small, _ = converted(folder, VGG, '--input_shape=3x8x8')
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    assert nets.num_params(small) < nets.num_params(nets.VGG())


def pruned_vgg(num_classes=10):
    """A factory that puts its model under a mask by itself, and leaves it in training mode."""
    model = nets.VGG(outputs=num_classes)
    prune.random_unstructured(model.fc, 'weight', 0.9)
    return model


def test_a_factory_may_prune_train_and_take_the_number_of_classes(folder):
    model = saved(folder, sparse(lambda: nets.VGG(outputs=3)))
    small, _ = converted(folder, f'--model={__name__}:pruned_vgg', '--num_classes=3', '--input_shape=3x8x8')
    assert_same(model, small, nets.images())


@pytest.mark.parametrize('wrap', [
    lambda state: {'state_dict': state, 'epoch': 3}, lambda state: {'model': state},
    lambda state: {f'module.{name}': tensor for name, tensor in state.items()},
    lambda state: {name: tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')},
], ids=['state_dict', 'model', 'module.', 'old batch norm'])
def test_the_state_dict_may_be_wrapped(folder, wrap):
    model = sparse()
    torch.save(wrap(model.state_dict()), folder / 'weights.pth')
    small, _ = converted(folder, VGG, '--input_shape=3x8x8')
    assert_same(model, small, nets.images())


def make_level(folder, last='model_ep10_it0.pth'):
    """A level directory with three models; the last one, under its mask, is returned."""
    hparams = ModelHparams('mnist_lenet_20_10', 'kaiming_normal', 'uniform')
    for number, name in enumerate(['model_ep0_it0.pth', 'model_ep9_it30.pth', last]):
        torch.manual_seed(number)
        model = models_registry.get(hparams).eval()
        torch.save(model.state_dict(), folder / name)
    mask = Mask.ones_like(model)
    for name in mask:
        mask[name] = (torch.rand(mask[name].shape) < 0.2).int()
    mask['fc_layers.0.weight'][:5] = 0
    mask.save(str(folder))
    with torch.no_grad():
        for name, keep in mask.items():
            model.get_parameter(name).mul_(keep)
    return model


def test_a_level_directory_gives_its_last_model_under_its_mask(folder):
    model = make_level(folder)
    small, out = converted(folder, '--model=mnist_lenet_20_10', checkpoint='.')
    assert f'weights of {folder / "model_ep10_it0.pth"}' in out and 'random inputs of 1x28x28' in out
    assert_same(model, small, nets.images(28, channels=1))


def test_paper_mode_says_that_it_changes_the_outputs(folder):
    model = saved(folder, sparse(density=0.5))
    small, out = converted(folder, VGG, '--input_shape=3x8x8', '--mode=paper')
    assert '--mode=paper drops the constants' in out and 'all-zero filter (its constant is dropped)' in out
    difference = float(re.search(r'max \|difference\| +(\S+),', out)[1])
    x = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert difference > 1e-3
    assert difference == pytest.approx(compare(model, small, x).max_abs_difference, rel=1e-2)


def test_widths_are_rounded_up_on_request(folder):
    saved(folder, sparse())
    unrounded, _ = converted(folder, VGG, '--input_shape=3x8x8')
    assert any(len(block.conv.weight) % 4 for name, block in unrounded.layers.named_children() if name != '1'
               and hasattr(block, 'conv'))
    small, _ = converted(folder, VGG, '--input_shape=3x8x8', '--round_to=4')
    assert all(len(module.weight) % 4 == 0 for module in small.modules() if isinstance(module, nn.Conv2d))


def test_the_same_command_writes_the_same_again_and_replaces_the_old(folder):
    saved(folder, sparse())
    flags = VGG, '--input_shape=3x8x8'
    first, _ = converted(folder, *flags)
    plan = (folder / 'out' / 'small.plan.json').read_bytes()
    second, _ = converted(folder, *flags)
    assert nets.same_state(first.state_dict(), second.state_dict())
    assert (folder / 'out' / 'small.plan.json').read_bytes() == plan


# ---- both files, or neither

def plan_fits(folder):
    """Whether the plan that lies beside the model is that model's."""
    plan = RemovalPlan.from_dict(json.loads((folder / 'out' / 'small.plan.json').read_text()))
    widths = {name: len(module.weight) for name, module in load(folder / 'out' / 'small.pth').named_modules()
              if isinstance(module, (nn.Conv2d, nn.Linear))}
    return {layer.layer: len(layer.keep_outputs) for layer in plan.layers} == widths


@pytest.fixture
def replacing(folder):
    """Runs the command over the files of another checkpoint, and says which of them are left as they were."""
    saved(folder, sparse())
    converted(folder, VGG, '--input_shape=3x8x8')
    saved(folder, sparse(density=0.03))
    before = helpers.content_digests(folder / 'out')

    def replace():
        outcome = run(folder, VGG, '--input_shape=3x8x8')
        after = helpers.content_digests(folder / 'out')
        assert after.keys() <= before.keys()  # no temporary file
        return outcome, {name for name in after if after[name] == before[name]}

    return replace


@pytest.mark.parametrize('name, call, model_is_old', [
    ('unlink', 1, True), ('replace', 1, True), ('replace', 2, False), *(('fsync', n, n == 1) for n in range(1, 5))])
def test_a_plan_never_lies_beside_the_model_of_another(folder, replacing, monkeypatch, name, call, model_is_old):
    original, calls = getattr(os, name), itertools.count(1)

    def failing(*args, **keywords):
        if next(calls) == call:
            raise OSError(errno.EIO, 'Input/output error')
        return original(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, failing)
        outcome, old = replacing()
    helpers.assert_one_line_error(outcome, 'Input/output error')
    assert ('small.pth' in old) == model_is_old
    assert not (folder / 'out' / 'small.plan.json').exists() or plan_fits(folder)


def test_a_full_disk_leaves_both_files_as_they_were(replacing):
    small = conversion_module.convert(sparse(density=0.03), nets.images()).model
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (4096, len(to_bytes(small, (3, 8, 8))) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        try:
            outcome, old = replacing()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        helpers.assert_one_line_error(outcome, 'File too large')
        assert old == {'small.pth', 'small.plan.json'}


# ---- what it says

def test_help_lists_the_command_without_importing_torch(folder):
    outcome = helpers.run_main('--help')
    assert outcome.status == 0
    assert f'convert [...] => {runner_registry.DESCRIPTIONS["convert"]}' in outcome.out
    for flag in ('--model', '--checkpoint', '--output', '--input_shape', '--num_classes', '--mode', '--round_to'):
        assert flag in helpers.run_main('convert', '--help').out
    code = '''
import sys
import dnnshifter_ext.install, open_lth.main
dnnshifter_ext.install.install()
sys.argv = ['main.py', '--help']
try:
    open_lth.main.main()
except SystemExit:
    assert not {'torch', 'numpy', 'dnnshifter_ext.cli'} & set(sys.modules)
'''
    shown = subprocess.run([sys.executable, '-c', code], check=True, cwd=helpers.REPOSITORY, capture_output=True)
    assert b'convert [...]' in shown.stdout


def test_location(folder):
    assert run(folder, VGG, '--display_output_location').out == f'{folder}/out/small.pth\n'
    assert helpers.list_files(folder) == set()


# ---- what it refuses: one line, status 2, nothing written

@pytest.mark.parametrize('flags, expected', [
    (['--model=cifar_vgg_17'], ['no such model: cifar_vgg_17', 'cifar_vgg_D', 'package.module:factory']),
    (['--model=resnet181', '--input_shape=3x8x8'], ['no such model', 'resnet18']),
    (['--model=tests.nothing:VGG'], ['tests.nothing:VGG: cannot import it', 'PYTHONPATH']),
    (['--model=tests.dnnshifter_ext.nets:Missing'], ['cannot import it', "'Missing'"]),
    (['--model=tests.dnnshifter_ext.nets:images'], ['images returns no torch.nn.Module but a Tensor']),
    (['--model=tests.dnnshifter_ext.nets:VGG', '--num_classes=5'], ['VGG(num_classes=5) fails', 'num_classes']),
    ([], ['needs --model']),
    ([VGG], ['--input_shape', 'not known', 'VGG']),
    ([VGG, '--input_shape=3x8x'], ['--input_shape is written like 3x32x32', "'3x8x'"]),
    ([VGG, '--input_shape=3,8,8'], ['--input_shape is written like']),
    ([VGG, '--input_shape=3x0x8'], ['--input_shape is written like']),
    ([VGG, '--input_shape=-3x8x8'], ['--input_shape is written like']),
    ([VGG, '--input_shape=1x8x8'], ['does not accept example inputs of shape 1x1x8x8', 'weights.pth']),
    ([VGG, '--input_shape=3x2x2'], ['does not accept example inputs of shape 1x3x2x2']),
    ([VGG, '--input_shape=99999x99999x99999x99999'], ['do not fit into memory']),
    ([VGG, '--input_shape=3x8x8', '--mode=exakt'], ['--mode is exact or paper, not exakt']),
    ([VGG, '--input_shape=3x8x8', '--round_to=0'], ['--round_to must be at least 1']),
    ([RESNET, '--input_shape=3x8x8'], ['weights.pth does not fit', 'ResNet', 'it lacks', 'and']),
], ids=lambda value: ' '.join(flag.rpartition(':')[2] for flag in value) if value and '--' in value[0] else '')
def test_bad_flags(folder, flags, expected):
    saved(folder, sparse())
    assert_refused(folder, run(folder, *flags), *expected)


def bad_checkpoint(content):
    return lambda path: torch.save(content, path)


@pytest.mark.parametrize('write, expected', [
    (lambda path: None, ['No such file']),
    (lambda path: path.write_bytes(b''), ['is damaged']),
    (lambda path: path.write_text('hello'), ['is damaged']),
    (bad_checkpoint(nets.VGG()), ['holds more than tensors', 'model.state_dict()']),
    (bad_checkpoint([1, 2]), ['is no state dict']),
    (bad_checkpoint({}), ['is no state dict']),
    (bad_checkpoint({'fc.weight': 'text'}), ['is no state dict']),
    (bad_checkpoint({'fc.weight': torch.zeros(10, 16)}), ['does not fit', "it lacks 'layers.0.conv.weight'"]),
    (bad_checkpoint(nets.VGG().state_dict() | {'extra': torch.zeros(1)}), ['does not fit', "'extra'"]),
    (bad_checkpoint(nets.VGG(outputs=9).state_dict()), ['does not fit', 'size mismatch for fc.bias']),
    (bad_checkpoint({'fc.weight_orig': torch.zeros(10, 16), 'fc.weight_mask': torch.zeros(9, 16)}),
     ["the mask of 'fc.weight' does not fit"]),
    (bad_checkpoint(nets.VGG().state_dict() | {'fc.bias': torch.full((10,), float('nan'))}),
     ["'fc.bias' has NaN or infinite entries", 'before the training diverged']),
    (bad_checkpoint(nets.VGG().state_dict() | {'layers.0.conv.bias': torch.full((8,), float('inf'))}),
     ["'layers.0.conv.bias' has NaN or infinite"]),
    (lambda path: path.mkdir(), ['holds no model_ep*_it*.pth', 'level_K/main']),
])
def test_bad_checkpoints(folder, write, expected):
    write(folder / 'weights.pth')
    assert_refused(folder, run(folder, VGG, '--input_shape=3x8x8'), 'weights.pth', *expected)


def test_truncated_checkpoints(folder):
    saved(folder, sparse())
    path = folder / 'weights.pth'
    whole = path.read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert_refused(folder, run(folder, VGG, '--input_shape=3x8x8'), 'weights.pth is damaged')


def test_a_level_without_its_mask_or_with_another(folder):
    make_level(folder)
    Mask({'fc.weight': torch.ones(3, 3)}).save(str(folder))
    assert_refused(folder, run(folder, '--model=mnist_lenet_20_10', checkpoint='.'),
                   "mask.pth: the mask of 'fc.weight' does not fit model_ep10_it0.pth")
    (folder / 'mask.pth').unlink()
    assert_refused(folder, run(folder, '--model=mnist_lenet_20_10', checkpoint='.'), 'mask.pth is missing')


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def untraceable():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), Branching())


def rolling():
    return nets.Pair(activation=lambda x: torch.roll(x, 1, 2))


@pytest.mark.parametrize('factory, expected', [
    (untraceable, ["torch.fx cannot trace this model: symbolically traced", "('2')", 'rewrite that part']),
    (rolling, ["cannot store 'roll': function 'roll' is not supported"]),
])
def test_models_that_cannot_be_traced_or_stored(folder, factory, expected):
    saved(folder, factory())
    model = f'--model={__name__}:{factory.__name__}'
    assert_refused(folder, run(folder, model, '--input_shape=3x8x8'), 'weights.pth', *expected)


class Fork(nn.Module):
    """Two branches that are added up."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.last = nn.Conv2d(4, 5, 3)

    def forward(self, x):
        return self.last(F.relu(self.left(x)) + F.relu(self.right(x))).mean((2, 3))


@pytest.mark.parametrize('factory, dead, named', [
    ('tests.dnnshifter_ext.nets:VGG', ['layers.2.conv'], "past 'layers.2.conv'. Prune less"),
    ('tests.dnnshifter_ext.nets:VGG', ['layers.2.conv', 'fc'], "past 'layers.2.conv'. Prune less"),
    ('tests.dnnshifter_ext.nets:VGG', ['fc'], "past 'fc'. Prune less"),
    ('tests.dnnshifter_ext.nets:ResNet', ['conv', 'blocks.0.conv1'], "past 'conv'. Prune less"),
    (f'{__name__}:Fork', ['left', 'right'], "past 'left' and 'right'. Prune less"),
    (f'{__name__}:Fork', ['left', 'last'], "past 'last'. Prune less"),
])
@pytest.mark.parametrize('mode', ['exact', 'paper'])
def test_layer_collapse_names_the_layer(folder, factory, dead, named, mode):
    build = {'VGG': nets.VGG, 'ResNet': nets.ResNet, 'Fork': Fork}[factory.rpartition(':')[2]]
    model = nets.sparsify(build(), density=1, share_of_dead_filters=0)
    for path in dead:
        model.get_submodule(path).weight.data.zero_()
    saved(folder, model)
    outcome = run(folder, f'--model={factory}', '--input_shape=3x8x8', f'--mode={mode}')
    assert_refused(folder, outcome, 'every output of the model is constant', named)


def test_dead_branches_beside_a_live_one_are_no_collapse(folder):
    model = nets.sparsify(Fork(), density=1, share_of_dead_filters=0)
    model.left.weight.data.zero_()
    saved(folder, model)
    small, _ = converted(folder, f'--model={__name__}:Fork', '--input_shape=3x8x8')
    assert compare(model, small, nets.images()).within(1e-5)


def test_a_model_whose_check_fails_is_not_written(folder, monkeypatch):
    def forgetful(graph_module, plan, facts=None):
        small = apply_plan(graph_module, plan, facts)
        small.fc.bias.data += 0.1
        return small

    monkeypatch.setattr(conversion_module, 'apply_plan', forgetful)
    saved(folder, sparse())
    assert_refused(folder, run(folder, VGG, '--input_shape=3x8x8'), 'differs by', 'it is thrown away')


def test_outputs_that_cannot_be_written_are_refused_before_any_work(folder, monkeypatch):
    saved(folder, sparse())
    before = (folder / 'weights.pth').read_bytes()
    monkeypatch.setattr(conversion_module, 'capture', None)
    flags = VGG, '--input_shape=3x8x8'
    assert_refused(folder, run(folder, *flags, output='missing/small.pth'), '--output', 'no folder', 'missing')
    assert_refused(folder, run(folder, *flags, output='out'), '--output', 'out is a folder')
    assert_refused(folder, run(folder, *flags, output='weights.pth/small.pth'), 'no folder')
    (folder / 'link.pth').symlink_to(folder / 'weights.pth')
    for output in ('weights.pth', 'out/../weights.pth', 'link.pth'):
        assert_refused(folder, run(folder, *flags, output=output), 'would replace the checkpoint')
    (folder / 'out' / 'small.plan.json').mkdir()
    assert_refused(folder, run(folder, *flags), 'small.plan.json is a folder')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    assert_refused(folder, run(folder, *flags), 'not writable')
    assert (folder / 'weights.pth').read_bytes() == before
