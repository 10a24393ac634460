"""torchvision's architectures with random sparse weights: which convert exactly, and what the user is told otherwise.

    python -m tests.dnnshifter_ext.architectures > docs/architectures.md

prints the page (about 8 minutes on one thread, with 6 GB of memory).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import gc
import inspect
import sys

import torch
from torch import nn
import torchvision
from torchvision.models import convnext, regnet, vision_transformer

from dnnshifter_ext.conversion import convert
from dnnshifter_ext.graph import capture
from tests.dnnshifter_ext.equality import Difference, difference
from tests.dnnshifter_ext.nets import num_params
from tests.dnnshifter_ext.sparsity import Sparsity, make_sparse

CLASSIFICATION = torchvision.models.list_models(module=torchvision.models)
OTHERS = sorted(set(torchvision.models.list_models()) - set(CLASSIFICATION))

PAGE = """# Architectures

Made by `python -m tests.dnnshifter_ext.architectures > docs/architectures.md` with torch {torch} and torchvision
{torchvision}. `make test` checks ten of the rows, `make test-full` all.

## Image classification

{num_exact} of the {num} image classification architectures of torchvision are converted exactly. Each has random masks
(30 % of the weights stay, 30 % of the filters are dead as a whole), random batch norms (a fifth of the scales is 0),
biases and other parameters. Exact means that in float64 no prediction changes and no output differs by more than 1e-9
of the range of the outputs, both at the resolution the converter was shown and at another, where the architecture
takes two.

Removed are output channels of convolutions and linear layers, which includes hidden neurons. Parameters are counted
in the sparse model, with its batch norms, and in the converted one, where they are fused.

| architecture | resolutions | channels | removed | parameters | converted | verdict |
|---|---|---:|---:|---:|---:|---|
{rows}

\\* with fewer channels than the original, which would need more than 6 GB of memory here; the layers are the same.

## Not converted

What torch.fx cannot trace, `convert` refuses by a `ValueError` of one line. In torchvision these are the detectors and
RAFT:

{refused}

torch.fx can trace the others, which are not tested here: {traced}.
"""


@dataclass(frozen=True)
class Result:
    """Of one architecture: its one or two resolutions, and the models before and after; or the error."""

    name: str
    resolutions: tuple[int, ...] = ()
    num_removed: int = 0
    num_channels: int = 0
    num_params: int = 0
    num_params_converted: int = 0
    differences: tuple[Difference, ...] = ()
    error: str = ''

    @property
    def verdict(self) -> str:
        if self.error or all(each.is_exact for each in self.differences):
            return self.error or 'exact'
        return f'differs by {max(each.relative for each in self.differences):.1e}'

    @property
    def row(self) -> str:
        """The architecture's line in the table."""
        resolutions = ', '.join(map(str, self.resolutions))
        star = '\\*' if self.name in NARROWER else ''
        return (f'| {self.name}{star} | {resolutions} | {self.num_channels:,} | {self.num_removed:,} | '
                f'{self.num_params:,} | {self.num_params_converted:,} | {self.verdict} |')


def run(name: str) -> Result:
    """Converts a classification architecture with random sparse weights, and compares at both resolutions."""
    gc.collect()  # graphs are cycles, and may still hold the weights of the architecture before
    resolutions = resolutions_of(name)
    model = make_sparse(build(name), Sparsity())
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64) for side in resolutions]
    try:
        conversion = convert(model, images[0])
    except ValueError as error:
        return Result(name, resolutions, error=str(error))
    return Result(
        name, resolutions, conversion.plan.num_removed, sum(layer.num_outputs for layer in conversion.plan.layers),
        num_params(model), num_params(conversion.model),
        tuple(difference(model, conversion.model, x) for x in images))


def resolutions_of(name: str) -> tuple[int, ...]:
    """Small ones that the architecture accepts; one where its weights belong to a resolution."""
    if name == 'maxvit_t':
        return (224,)
    if name.startswith('vit'):
        return (56,) if name == 'vit_h_14' else (64,)
    return (96, 128) if name == 'inception_v3' else (64, 96)


def build(name: str) -> nn.Module:
    """The architecture with any weights, for its first resolution."""
    if name in NARROWER:
        return NARROWER[name]()
    arguments = {'init_weights': False} if name.startswith(('vgg', 'googlenet', 'inception')) else {}
    if name.startswith('vit'):
        [arguments['image_size']] = resolutions_of(name)
    return torchvision.models.get_model(name, weights=None, **arguments)


# A quarter to three quarters as wide as the original.
NARROWER: dict[str, Callable[[], nn.Module]] = {
    'convnext_large': lambda: convnext.ConvNeXt([
        convnext.CNBlockConfig(*stage) for stage in ((120, 240, 3), (240, 480, 3), (480, 960, 27), (960, None, 3))]),
    'regnet_y_128gf': lambda: regnet.RegNet(regnet.BlockParams.from_init_params(
        depth=27, w_0=112, w_a=40.2075, w_m=2.52, group_width=64, se_ratio=0.25)),
    'vit_l_16': lambda: vision_transformer.VisionTransformer(64, 16, 24, 16, 512, 2048),
    'vit_l_32': lambda: vision_transformer.VisionTransformer(64, 32, 24, 16, 512, 2048),
    'vit_h_14': lambda: vision_transformer.VisionTransformer(56, 14, 32, 16, 320, 1280),
}


def refusal(name: str) -> str:
    """What `convert` says to an architecture that torch.fx cannot trace; '' where it can."""
    builder = torchvision.models.get_model_builder(name)
    takes_backbone = 'weights_backbone' in inspect.signature(builder).parameters
    try:
        capture(builder(weights=None, **{'weights_backbone': None} if takes_backbone else {}).eval())
    except ValueError as error:
        return str(error)
    return ''


def refused_row(name: str, error: str) -> str:
    return f'* `{name}`: `{error}`'


def main() -> None:
    torch.set_num_threads(1)
    results = []
    for name in CLASSIFICATION:
        results.append(run(name))
        print(results[-1].row, file=sys.stderr)
    refusals = {name: refusal(name) for name in OTHERS}
    print(PAGE.format(
        torch=torch.__version__.partition('+')[0], torchvision=torchvision.__version__.partition('+')[0],
        num=len(results), num_exact=sum(result.verdict == 'exact' for result in results),
        rows='\n'.join(result.row for result in results),
        refused='\n'.join(refused_row(name, error) for name, error in refusals.items() if error),
        traced=', '.join(f'`{name}`' for name, error in refusals.items() if not error)), end='')


if __name__ == '__main__':
    main()
