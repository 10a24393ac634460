"""The operations this package understands, by name: what it may rebuild, and what it may store in a file.

The tables are allow-lists. A module type, function or method that is missing here is never guessed at: the
analysis treats it as a barrier (the channels that reach it stay) and the exporter refuses it by name.
"""

from __future__ import annotations

from collections.abc import Callable
import copy
import importlib
import math
import operator

import torch
from torch import nn
from torch.nn import functional

from dnnshifter_ext.sparse.layers import SparseConv2d, SparseLinear

_CONV = ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups', 'bias',
         'padding_mode')
_BATCH_NORM = ('num_features', 'eps', 'momentum', 'affine', 'track_running_stats')
_MAX_POOL = ('kernel_size', 'stride', 'padding', 'dilation', 'return_indices', 'ceil_mode')
_AVG_POOL = ('kernel_size', 'stride', 'padding', 'ceil_mode', 'count_include_pad')

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
AVG_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
                  nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# Each acts on every element by itself and has no state that depends on the number of channels.
ELEMENTWISE_MODULES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: ('inplace',),
    nn.ReLU6: ('inplace',),
    nn.LeakyReLU: ('negative_slope', 'inplace'),
    nn.ELU: ('alpha', 'inplace'),
    nn.CELU: ('alpha', 'inplace'),
    nn.SELU: ('inplace',),
    nn.GELU: ('approximate',),
    nn.SiLU: ('inplace',),
    nn.Mish: ('inplace',),
    nn.Hardtanh: ('min_val', 'max_val', 'inplace'),
    nn.Hardswish: ('inplace',),
    nn.Hardsigmoid: ('inplace',),
    nn.Sigmoid: (),
    nn.LogSigmoid: (),
    nn.Tanh: (),
    nn.Softplus: ('beta', 'threshold'),
    nn.Softsign: (),
}

# Module type -> the names of its constructor's arguments, which are also the names of its attributes.
MODULE_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(CONVS, _CONV),
    **dict.fromkeys(BATCH_NORMS, _BATCH_NORM),
    **dict.fromkeys(MAX_POOLS, _MAX_POOL),
    **dict.fromkeys(AVG_POOLS, (*_AVG_POOL, 'divisor_override')),
    **dict.fromkeys(ADAPTIVE_POOLS, ('output_size',)),
    **dict.fromkeys(DROPOUTS, ('p', 'inplace')),
    **ELEMENTWISE_MODULES,
    nn.AvgPool1d: _AVG_POOL,
    nn.Linear: ('in_features', 'out_features', 'bias'),
    nn.PReLU: ('num_parameters',),
    nn.Identity: (),
    nn.Flatten: ('start_dim', 'end_dim'),
    nn.Softmax: ('dim',),
    nn.LogSoftmax: ('dim',),
    nn.LayerNorm: ('normalized_shape', 'eps', 'elementwise_affine', 'bias'),
    SparseConv2d: ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups',
                   'num_nonzero', 'low', 'high', 'pool'),
    SparseLinear: ('in_features', 'out_features', 'num_nonzero', 'low', 'high'),
    nn.MultiheadAttention: ('embed_dim', 'num_heads', 'dropout', 'bias', 'add_bias_kv', 'add_zero_attn', 'kdim', 'vdim',
                            'batch_first'),
}
# Arguments that say whether there is a tensor -> the attribute that holds it, where it has another name.
_IS_GIVEN = {'bias': 'bias', 'add_bias_kv': 'bias_k'}

ELEMENTWISE_FUNCTIONS: dict[str, Callable] = {
    'torch.relu': torch.relu,
    'torch.sigmoid': torch.sigmoid,
    'torch.tanh': torch.tanh,
    'functional.relu': functional.relu,
    'functional.relu6': functional.relu6,
    'functional.leaky_relu': functional.leaky_relu,
    'functional.elu': functional.elu,
    'functional.celu': functional.celu,
    'functional.selu': functional.selu,
    'functional.gelu': functional.gelu,
    'functional.silu': functional.silu,
    'functional.mish': functional.mish,
    'functional.hardtanh': functional.hardtanh,
    'functional.hardswish': functional.hardswish,
    'functional.hardsigmoid': functional.hardsigmoid,
    'functional.softplus': functional.softplus,
    'functional.softsign': functional.softsign,
    'functional.logsigmoid': functional.logsigmoid,
    'functional.sigmoid': functional.sigmoid,
    'functional.tanh': functional.tanh,
}
MAX_POOL_FUNCTIONS = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
AVG_POOL_FUNCTIONS = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
ADAPTIVE_POOL_FUNCTIONS = (
    functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d,
    functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d,
)

# Name in a stored file -> function. The exporter restricts 'getattr' further, to the attribute 'shape'.
FUNCTIONS: dict[str, Callable] = {
    **ELEMENTWISE_FUNCTIONS,
    **{f'functional.max_pool{n}d': function for n, function in enumerate(MAX_POOL_FUNCTIONS, 1)},
    **{f'functional.avg_pool{n}d': function for n, function in enumerate(AVG_POOL_FUNCTIONS, 1)},
    **{f'functional.adaptive_avg_pool{n}d': f for n, f in enumerate(ADAPTIVE_POOL_FUNCTIONS[:3], 1)},
    **{f'functional.adaptive_max_pool{n}d': f for n, f in enumerate(ADAPTIVE_POOL_FUNCTIONS[3:], 1)},
    'functional.dropout': functional.dropout,
    'functional.softmax': functional.softmax,
    'functional.log_softmax': functional.log_softmax,
    'functional.pad': functional.pad,
    'functional.layer_norm': functional.layer_norm,
    'torch.flatten': torch.flatten,
    'torch.reshape': torch.reshape,
    'torch.index_add': torch.index_add,
    'torch.index_select': torch.index_select,
    'torch.chunk': torch.chunk,
    'torch.split': torch.split,
    'torch.transpose': torch.transpose,
    'torch.permute': torch.permute,
    'torch.clamp': torch.clamp,
    'torch.add': torch.add,
    'torch.mul': torch.mul,
    'torch.cat': torch.cat,
    'torch.mean': torch.mean,
    'torch.einsum': torch.einsum,
    'torch.swapaxes': torch.swapaxes,
    'torch._assert': torch._assert,
    'operator.add': operator.add,
    'operator.iadd': operator.iadd,
    'operator.sub': operator.sub,
    'operator.mul': operator.mul,
    'operator.imul': operator.imul,
    'operator.truediv': operator.truediv,
    'operator.floordiv': operator.floordiv,
    'operator.getitem': operator.getitem,
    'operator.eq': operator.eq,
    'math.prod': math.prod,
    'getattr': getattr,
}

_SWIN = 'torchvision.models.swin_transformer'
# What torchvision keeps whole in the graphs of its Swin transformers, for control flow that depends on shapes: tensors,
# numbers and lists of numbers in, a tensor out. Whether another version of torchvision still has them shows when used.
SWIN_FUNCTIONS = tuple(f'{_SWIN}.{name}' for name in (
    '_patch_merging_pad', '_get_relative_position_bias', 'shifted_window_attention'))
_NAMES = {function: name for name, function in FUNCTIONS.items()}

ELEMENTWISE_METHODS = frozenset({'relu', 'relu_', 'sigmoid', 'sigmoid_', 'tanh', 'tanh_'})
METHODS = ELEMENTWISE_METHODS | {
    'add', 'add_', 'index_add_', 'mul', 'mul_', 'size', 'view', 'reshape', 'flatten', 'mean', 'contiguous',
    'permute', 'transpose', 'squeeze', 'unsqueeze', 'chunk', 'split', 'softmax', 'log_softmax',
    'dim', 'expand',
}


def function_named(name: str) -> Callable | None:
    """The function that a stored file calls `name`; None if it is in no allow-list.

    Raises ValueError for one of torchvision's where that is not installed, or has no such function. Only a file that
    names one imports torchvision.
    """
    if name not in SWIN_FUNCTIONS:
        return FUNCTIONS.get(name)
    try:
        return getattr(importlib.import_module(_SWIN), name.rpartition('.')[2])
    except (ImportError, AttributeError) as error:
        raise ValueError(f"'{name}' is needed: {error}") from error


def name_of(function: Callable) -> str | None:
    """The inverse of `function_named`; None for a function that is in no allow-list."""
    if function in _NAMES:
        return _NAMES[function]
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', '')}"
    return name if name in SWIN_FUNCTIONS and function_named(name) is function else None


def is_conv_or_linear(module: nn.Module) -> bool:
    """True for exactly torch's own Conv1d/2d/3d and Linear: a subclass may compute something else."""
    return type(module) in (*CONVS, nn.Linear)


def arguments(module: nn.Module) -> dict:
    """The constructor arguments that rebuild `module` (without its tensors), by name.

    Raises ValueError for a type that is not in MODULE_ARGUMENTS.
    """
    if type(module) not in MODULE_ARGUMENTS:
        kind = type(module)
        raise ValueError(f"module type '{kind.__module__}.{kind.__qualname__}' is not supported")
    tensors = _IS_GIVEN | ({'bias': 'in_proj_bias'} if type(module) is nn.MultiheadAttention else {})
    return {name: getattr(module, tensors[name]) is not None if name in tensors else getattr(module, name)
            for name in MODULE_ARGUMENTS[type(module)]}


def construct(kind: type[nn.Module], values: dict) -> nn.Module:
    """A new module of that type in evaluation mode, on the meta device: no memory, no random draw."""
    with torch.device('meta'):
        return kind(**values).eval()


def copy_of(part: nn.Module | torch.Tensor) -> nn.Module | torch.Tensor:
    """A deep copy. Most modules without tensors are made anew, which takes a tenth of the time."""
    is_plain = type(part) in MODULE_ARGUMENTS and not (part._parameters or part._buffers or part._modules)
    return type(part)(**arguments(part)).eval() if is_plain else copy.deepcopy(part)


def with_tensors(module: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    """A new conv or linear layer like `module` around `weight` (O, I, *kernel), `bias` (O,)."""
    num_outputs, num_inputs = weight.shape[:2]
    if isinstance(module, nn.Linear):
        sizes = {'in_features': num_inputs, 'out_features': num_outputs}
    else:
        groups = module.groups * num_outputs // module.out_channels if module.groups > 1 else 1
        sizes = {'groups': groups, 'in_channels': num_inputs * groups, 'out_channels': num_outputs}
    parameters = {name: None if tensor is None else nn.Parameter(tensor, requires_grad=module.weight.requires_grad)
                  for name, tensor in (('weight', weight), ('bias', bias))}
    # By hand, because the constructor would draw weights first, which takes ten times as long as all of this.
    new = type(module).__new__(type(module))
    # Hooks and the like stay behind.
    vars(new).update({name: type(value)() if isinstance(value, (dict, set)) else value
                      for name, value in vars(module).items()} | sizes | {'_parameters': parameters, 'training': False})
    return new
