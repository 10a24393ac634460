"""Each back end computes what the module does, and says in one line when it cannot."""

import functools
import sys

import pytest
import torch
from torch import nn

from dnnshifter_ext.backends import BACKENDS, prepare
from dnnshifter_ext.conversion import convert
from dnnshifter_ext.profiler import profile_together
from tests.dnnshifter_ext import nets


def as_tensor(output):
    """ONNX Runtime returns a list of arrays."""
    return output if isinstance(output, torch.Tensor) else torch.from_numpy(output[0])


def check(backend):
    for model in (nets.sparsify(nets.ResNet()), convert(nets.sparsify(nets.VGG()), nets.images()).model):
        expected = model(nets.images(seed=1)).detach()
        with torch.inference_mode():
            run = prepare(backend, model, nets.images(seed=2))
            assert torch.allclose(as_tensor(run(nets.images(seed=1))), expected, atol=1e-4), backend


@pytest.mark.parametrize('backend', ['eager', 'channels_last', 'onnxruntime'])
def test_outputs_are_those_of_the_module(backend):
    check(backend)


@pytest.mark.full
def test_outputs_of_compiled_modules():
    """Takes half a minute, nearly all of it in the C++ compiler."""
    check('compile')


def test_any_number_of_models_of_one_class_can_be_compiled(monkeypatch):
    """torch gives up on a function that it has compiled eight times."""
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='eager'))  # without C++
    models = {f'width {width}': nets.VGG(plan=(width,)).eval() for width in range(1, 6)}
    found = profile_together(models, (3, 8, 8), batch_sizes=(1, 2), budget_s=0, backends=('eager', 'compile'))
    for name in models:
        assert [(latency.backend, latency.batch_size) for latency in found[name].latencies] == [
            ('eager', 1), ('compile', 1), ('eager', 2), ('compile', 2)]


def test_without_a_compiler_it_says_so(monkeypatch):
    from torch._inductor import config
    monkeypatch.setattr(config.cpp, 'cxx', ('no-such-compiler',))
    monkeypatch.setattr(config, 'force_disable_caches', True)
    torch.compiler.reset()
    with pytest.raises(ValueError, match='^back end compile: cannot run VGG: ') as caught:
        prepare('compile', nets.VGG(plan=(7,)).eval(), nets.images())
    assert '\n' not in str(caught.value) and 'No working C++ compiler found' in str(caught.value)


def test_inputs_reach_channels_last_layers_with_the_channels_innermost():
    class Spy(nn.Conv2d):
        def forward(self, x):
            self.seen = x.is_contiguous(memory_format=torch.channels_last), self.weight.is_contiguous(
                memory_format=torch.channels_last)
            return super().forward(x)

    spy = Spy(3, 4, 3)
    prepare('channels_last', nn.Sequential(spy), nets.images())
    assert spy.seen == (True, True)


def test_channels_last_is_for_images():
    with pytest.raises(ValueError, match='^back end channels_last: cannot run Linear: required rank 4 tensor'):
        prepare('channels_last', nn.Linear(5, 2), torch.ones(3, 5))


def test_threads_are_those_of_torch(monkeypatch):
    import onnxruntime
    seen = []

    class Session(onnxruntime.InferenceSession):
        def __init__(self, content, options, **kwargs):
            seen.append(options.intra_op_num_threads)
            super().__init__(content, options, **kwargs)

    monkeypatch.setattr(onnxruntime, 'InferenceSession', Session)
    prepare('onnxruntime', nn.Linear(5, 2), torch.ones(3, 5))
    assert seen == [torch.get_num_threads()]


def test_an_unknown_back_end_is_one_line():
    with pytest.raises(ValueError, match="^there is no back end 'tensorrt'; there are eager, channels_last, compile"):
        profile_together({'a': nn.Identity()}, (3,), batch_sizes=(1,), backends=('tensorrt',))


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ValueError, match='^back end onnxruntime: cannot run Linear: .*pip install .*onnxruntime$'):
        prepare('onnxruntime', nn.Linear(5, 2), torch.ones(3, 5))


@pytest.mark.parametrize('backend', sorted(set(BACKENDS) - {'compile', 'channels_last'}))
def test_a_model_that_does_not_run_is_named(backend):
    with pytest.raises(ValueError, match=f'^back end {backend}: cannot run Linear: '):
        prepare(backend, nn.Linear(5, 2), torch.ones(3, 4))


def test_of_a_long_error_the_first_line_is_told():
    class Verbose(nn.Module):
        def forward(self, x):
            raise RuntimeError('no room\nSet an environment variable to read more')

    with pytest.raises(ValueError) as caught:
        prepare('eager', Verbose(), torch.ones(3, 4))
    assert str(caught.value) == 'back end eager: cannot run Verbose: no room'
