import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
import torchvision
from torchvision.models import swin_transformer
from torchvision.models.convnext import CNBlockConfig

from dnnshifter_ext import export
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.graph import capture
from tests import helpers
from tests.dnnshifter_ext import nets


def swin(**version):
    return torchvision.models.SwinTransformer([4, 4], 8, [1, 2], [2, 2], [2, 2], num_classes=5, **version)


def swin_v2():
    return swin(block=swin_transformer.SwinTransformerBlockV2, downsample_layer=swin_transformer.PatchMergingV2)


MODELS = {
    'lenet': (nets.LeNet, nets.images(6, 1)),
    'vgg': (nets.VGG, nets.images()),
    'cifar resnet': (nets.ResNet, nets.images()),
    'flattening': (nets.FlatteningNet, nets.images()),
    'resnet18': (lambda: torchvision.models.resnet18(weights=None), nets.images(32)),
    'resnet50': (lambda: torchvision.models.resnet50(weights=None, width_per_group=16), nets.images(32)),
    'efficientnet': (lambda: torchvision.models.efficientnet_b0(weights=None, num_classes=4), nets.images(32, num=2)),
    'convnext': (lambda: torchvision.models.ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], 0.5),
                 nets.images(32)),
    'vit': (lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64), nets.images(32)),
    'swin': (swin, nets.images(32)),
    'swin v2': (swin_v2, nets.images(32)),
    'maxvit': (lambda: torchvision.models.MaxVit((64, 64), 16, 2, [16], [1], 8, 0.1), nets.images(64, num=2)),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'a folder' / 'model.pth'


@pytest.fixture(autouse=True)
def folder(path):
    path.parent.mkdir()


def stored(model=None):
    """The file's content, with its structure taken apart."""
    data = export.to_data(model or nets.sparsify(nets.VGG()))
    return data, json.loads(data['structure'])


def refused(data, structure):
    """The message with which the changed content is refused."""
    with pytest.raises(ValueError) as caught:
        export.from_data(data | {'structure': json.dumps(structure)})
    return str(caught.value)


@pytest.mark.parametrize('name', MODELS)
def test_round_trip_bit_for_bit(name, path):
    build, x = MODELS[name]
    model = nets.sparsify(build(), density=0.5)
    for saved in (model, convert(model, x).model):
        export.save(saved, path)
        loaded = export.load(path)
        assert not loaded.training
        assert nets.same_state(nets.state_of(capture(saved)), nets.state_of(loaded))
        assert torch.equal(loaded(x), saved(x))
        assert [p.name for p in path.parent.iterdir()] == ['model.pth']


def test_saving_twice_gives_the_same_content(path):
    export.save(nets.sparsify(nets.VGG()), path)
    data = torch.load(path, weights_only=True)
    assert sorted(data) == ['format', 'structure', 'tensors', 'version']
    again = export.to_data(export.load(path))
    assert again['structure'] == data['structure']
    assert nets.same_state(again['tensors'], data['tensors'])


def test_every_kind_of_argument_and_attribute(path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))
            self.register_buffer('offset', torch.arange(6.0)[2:4])
            self.conv = nn.Conv2d(3, 2, 3, padding='same', padding_mode='reflect', bias=False)
            self.norm = nn.BatchNorm2d(2, eps=0.1, momentum=None)
            self.act = nn.Hardtanh(float('-inf'), 0.5)

        def forward(self, x, factor=2.0):
            x = self.act(self.norm(self.conv(x)))
            x = F.pad(x, (1, 1), value=float('inf'))[:, :, 1:, ..., :-1]
            x = torch.cat([x, x * self.scale], dim=1).mean((2, 3))
            return x.view(x.shape[0], 2, -1).transpose(1, 2) * factor + self.offset

    model = nets.sparsify(Odd(), density=1)
    export.save(model, path)
    loaded = export.load(path)
    x = nets.images()
    assert torch.equal(loaded(x), model(x)) and torch.equal(loaded(x, factor=3), model(x, 3))
    assert isinstance(loaded.scale, nn.Parameter) and 'offset' in dict(loaded.named_buffers())
    # A view takes no more room than it shows.
    assert torch.load(path, weights_only=True)['tensors']['offset'].untyped_storage().nbytes() == 8


@pytest.mark.parametrize('arguments', [
    dict(), dict(bias=False), dict(add_bias_kv=True), dict(add_zero_attn=True), dict(kdim=5, vdim=6),
    dict(batch_first=True), dict(kdim=5, bias=False)], ids=str)
def test_every_kind_of_attention(arguments, path):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, **arguments)
            self.norms = nn.ModuleList([nn.LayerNorm(8, bias=False), nn.LayerNorm((3, 8), 0.1, False)])

        def forward(self, query, key, value):
            y, _ = self.attention(query, key, value)
            return self.norms[1](self.norms[0](y))

    model = Attention().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    export.save(model, path)
    x = torch.randn(4, 3, 8), torch.randn(4, 3, arguments.get('kdim', 8)), torch.randn(4, 3, arguments.get('vdim', 8))
    assert torch.equal(export.load(path)(*x), model(*x))


def test_layers_with_dashes_and_digits_in_their_names(path):
    model = nn.Sequential()
    model.add_module('block1-0', nn.Linear(3, 2))
    model.add_module('7', nn.Linear(2, 2))
    export.save(model.eval(), path)
    x = torch.randn(2, 3)
    assert torch.equal(export.load(path)(x), model(x))


def test_the_shape_of_the_inputs_is_kept_on_request(path):
    model = nets.sparsify(nets.VGG())
    export.save(model, path)
    assert export.load(path).meta['input_shape'] is None
    export.save(model, path, nets.images().shape[1:])
    for _ in range(2):  # saving what was loaded keeps it
        loaded = export.load(path)
        assert loaded.meta['input_shape'] == (3, 8, 8)
        export.save(loaded, path)
    with pytest.raises(ValueError, match=r'\[3, -1\] is not the shape of an input'):
        export.save(model, path, (3, -1))
    data, structure = stored()
    del structure['input_shape']  # as in the files of earlier versions
    assert export.from_data(data | {'structure': json.dumps(structure)}).meta['input_shape'] is None
    for shape in ([], [3, 0], [3, '8'], [3, True], [3, 2.0], 3, '3x8', {}):
        assert 'is not the shape of an input' in refused(data, structure | {'input_shape': shape})


def test_loading_needs_no_engine_and_no_training_code(path):
    model = nets.sparsify(nets.VGG())
    export.save(model, path)
    torch.save(nets.images(), path.parent / 'x')
    torch.save(model(nets.images()), path.parent / 'y')
    code = f'''
import sys, torch
from dnnshifter_ext import load
folder = {str(path.parent)!r}
assert torch.equal(load(folder + '/model.pth')(torch.load(folder + '/x')), torch.load(folder + '/y'))
unwanted = {{'open_lth', 'torchvision', 'pandas', 'matplotlib', 'numpy.testing', 'tests'}} & set(sys.modules)
assert not unwanted, unwanted
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=helpers.REPOSITORY)


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    export.save(nets.sparsify(nets.VGG()), path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left on device') as caught:
        export.save(nets.sparsify(nets.LeNet()), path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ['model.pth']


def test_errors_of_the_file_system_name_the_path_that_was_given(path):
    model = nets.sparsify(nets.LeNet())
    (path.parent / 'folder').mkdir()
    (path.parent / 'file').touch()
    for bad, kind in (('missing/model.pth', FileNotFoundError), ('folder', IsADirectoryError),
                      ('file/model.pth', NotADirectoryError)):
        with pytest.raises(kind) as caught:
            export.save(model, path.parent / bad)
        assert str(caught.value).endswith(f": '{path.parent / bad}'") and '.tmp' not in str(caught.value)
    assert helpers.list_files(path.parent) == {'file'}


def test_what_cannot_be_stored_is_named(path):
    class Rolling(nets.Pair):
        def forward(self, x):
            return super().forward(torch.roll(x, 1, 2))

    with pytest.raises(ValueError, match="cannot store 'roll': function 'roll' is not supported"):
        export.save(Rolling().eval(), path)
    with pytest.raises(ValueError, match="cannot store 'cumsum': method 'cumsum' is not supported"):
        export.save(nets.Pair(activation=lambda x: x.cumsum(2)).eval(), path)
    with pytest.raises(ValueError, match="cannot store layer '1': module type 'torch.nn.modules.*GroupNorm'"):
        export.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)).eval(), path)
    with pytest.raises(ValueError, match="cannot store the argument '\\*inputs': only plain arguments"):
        class Several(nn.Module):
            def forward(self, *inputs):
                return inputs[0]

        export.save(Several().eval(), path)
    with pytest.raises(ValueError, match="function 'getattr' is not supported"):
        export.save(nets.Pair(activation=lambda x: x.T.mT).eval(), path)
    odd = nn.Sequential()
    odd.add_module('a b', nn.Linear(3, 2))
    with pytest.raises(ValueError, match="'a b' is not the name of a layer or tensor"):
        export.save(odd.eval(), path)
    assert list(path.parent.iterdir()) == []


def test_truncated_files_are_refused_in_one_line(path):
    export.save(nets.sparsify(nets.LeNet()), path)
    whole = path.read_bytes()
    for size in [0, 1, 10, *range(100, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError) as caught:
            export.load(path)
        assert str(path) in str(caught.value) and '\n' not in str(caught.value)


def test_damaged_files_are_refused_or_harmless(path):
    """A flipped byte is either found or changes nothing that is read (padding of the archive, say)."""
    model = nets.sparsify(nets.LeNet())
    export.save(model, path)
    expected = nets.state_of(export.load(path))
    whole = path.read_bytes()
    num_refused = 0
    for position in range(0, len(whole), len(whole) // 200):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1:])
        try:
            loaded = export.load(path)
        except ValueError as error:
            assert str(path) in str(error) and '\n' not in str(error)
            num_refused += 1
        else:
            assert nets.same_state(expected, nets.state_of(loaded))
    assert num_refused > 100


def test_foreign_files_are_refused_and_a_missing_one_is_missing(path):
    for content in (nets.LeNet().state_dict(), [1, 2], {'format': 'other'}, 7):
        torch.save(content, path)
        with pytest.raises(ValueError, match="model.pth: not a model file: its format is not 'dnnshifter-"):
            export.load(path)
    torch.save(nets.LeNet(), path)
    with pytest.raises(ValueError, match='not a model file, or damaged'):
        export.load(path)
    path.write_text('hello')
    with pytest.raises(ValueError, match='not a model file, or damaged'):
        export.load(path)
    with pytest.raises(FileNotFoundError):
        export.load(path.with_name('absent'))
    data, _ = stored()
    with pytest.raises(ValueError, match='format version 2 is not supported, only 1'):
        export.from_data(data | {'version': 2})


def test_unknown_operations_are_refused():
    data, structure = stored()
    for node in structure['nodes']:
        if node['op'] == 'call_function':
            node['target'] = 'os.system'
            assert refused(data, structure) == "function 'os.system' is not supported"
            node['target'] = '__import__'
            assert refused(data, structure) == "function '__import__' is not supported"
            break
    data, structure = stored()
    structure['modules']['fc']['type'] = 'Evil'
    assert refused(data, structure) == "layer 'fc': module type 'Evil' is not supported"
    data, structure = stored()
    [node] = [node for node in structure['nodes'] if node['op'] == 'call_method' and node['target'] == 'view']
    node['target'] = 'backward'
    assert refused(data, structure) == "method 'backward' is not supported"


def test_getattr_reads_nothing_but_shapes():
    data, structure = stored(nets.Pair(activation=lambda x: x * x.shape[2]).eval())
    [node] = [node for node in structure['nodes'] if node['target'] == 'getattr']
    node['args']['tuple'][1] = '__class__'
    assert refused(data, structure) == "function 'getattr' is not supported"


def test_of_torchvision_there_are_three_functions_and_no_more(monkeypatch):
    data, structure = stored(swin().eval())
    home = 'torchvision.models.swin_transformer'
    for name in ('torch.load', 'torch', 'SwinTransformer', 'swin_t', '_log_api_usage_once', '__builtins__', ''):
        [node, *_] = [node for node in structure['nodes'] if node['name'] == '_get_relative_position_bias']
        node['target'] = f'{home}.{name}'
        assert refused(data, structure) == f"function '{home}.{name}' is not supported"
    data, structure = stored(swin().eval())
    monkeypatch.setitem(sys.modules, home, None)  # as where torchvision is not installed
    assert f"'{home}._get_relative_position_bias' is needed: import of {home}" in refused(data, structure)


def test_a_function_of_that_name_from_elsewhere_is_not_stored(path):
    def _patch_merging_pad(x):
        return x * 2

    _patch_merging_pad.__module__ = swin_transformer.__name__
    graph = torch.fx.Graph()
    graph.output(graph.call_function(_patch_merging_pad, (graph.placeholder('x'),)))
    with pytest.raises(ValueError, match="function '_patch_merging_pad' is not supported"):
        export.save(torch.fx.GraphModule(nn.Module(), graph), path)


def renamed(name):
    """A file whose layer 'fc' is called `name`, consistently."""
    data, structure = stored()
    structure['modules'][name] = structure['modules'].pop('fc')
    for node in structure['nodes']:
        if node['target'] == 'fc':
            node['target'] = name
    tensors = {(name + key[2:] if key.startswith('fc.') else key): tensor
               for key, tensor in data['tensors'].items()}
    return data | {'tensors': tensors}, structure


def test_a_renamed_layer_is_fine():
    data, structure = renamed('head')
    assert export.from_data(data | {'structure': json.dumps(structure)})(nets.images()).shape == (4, 10)


# What would run if these names went into the generated code as they are.
CALL = "getattr(__import__('os'), 'mkdir')('hacked')"


@pytest.mark.parametrize('name', [
    f'fc"), {CALL}, getattr(self, "fc', 'a b', '', 'a..b', 'fc\n', '__class__', '__dict__', 'forward',
    'training', 'layers.forward', '_modules'])
def test_layer_names_cannot_smuggle_in_code_or_replace_methods(name):
    assert 'is not the name of a layer or tensor' in refused(*renamed(name))


@pytest.mark.parametrize('change', [
    lambda s: s['nodes'][0].update(target=f'y, x={CALL}'),
    lambda s: s['nodes'][0].update(name=f'x={CALL}'),
    lambda s: s['nodes'][1].update(name=f'x={CALL}'),
    lambda s: s['nodes'][1].update(target=CALL),
    lambda s: s['nodes'][1].update(op=CALL),
    lambda s: s['nodes'][1].update(kwargs={'dict': {f'x={CALL}, y': 1}}),
    lambda s: s['nodes'][1].update(args={'tuple': [{'node': CALL}]}),
    lambda s: s['attributes'].update({CALL: 'buffer'}),
])
def test_no_other_name_can_either(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, structure = stored()
    change(structure)
    assert '\n' not in refused(data, structure)
    assert not pathlib.Path('hacked').exists()


def test_a_text_argument_stays_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (f"' + {CALL} + '", f'" + {CALL} + "', "\\'"):
        data, structure = stored()
        structure['nodes'][0]['args'] = {'tuple': [text]}
        model = export.from_data(data | {'structure': json.dumps(structure)})
        assert next(iter(model.graph.nodes)).args == (text,)
    assert not pathlib.Path('hacked').exists()


def test_sizes_that_lie_are_refused_without_allocating():
    data, structure = stored()
    structure['modules']['fc']['arguments']['dict']['in_features'] = 10**12
    message = refused(data, structure)
    assert "layer 'fc': tensor 'weight' is missing or not of shape (10, 1000000000000)" in message
    data, structure = stored()
    del data['tensors']['fc.bias']
    assert "tensor 'bias' is missing" in refused(data, structure)
    data, structure = stored()
    data['tensors']['fc.bias'] = 'text'
    assert "tensor 'bias' is missing" in refused(data, structure)
    data, structure = stored()
    data['tensors']['fc.bias'] = torch.arange(10)
    refused(data, structure)


def test_structures_of_any_other_shape_are_refused():
    data, structure = stored()
    for broken in ('', '{', '[]', '{}', 'null', '1', '{"nodes": 1, "modules": {}, "attributes": {}}',
                   '{"nodes": [], "modules": {}, "attributes": {}', '[' * 10**5, json.dumps(structure)[:-2]):
        with pytest.raises(ValueError):
            export.from_data(data | {'structure': broken})
    for node in range(len(structure['nodes'])):
        for key in list(structure['nodes'][node]):
            for value in (None, 7, [], {'node': 'nowhere'}, {'a': 1, 'b': 2}, 'x y'):
                changed = json.loads(json.dumps(structure))
                changed['nodes'][node][key] = value
                try:
                    export.from_data(data | {'structure': json.dumps(changed)})
                except ValueError:
                    continue
                assert key in ('target', 'kwargs', 'args')
