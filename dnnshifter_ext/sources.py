"""The rim: a user's own model, built by its name and filled from a checkpoint. Every mistake is one UserError."""

from __future__ import annotations

import difflib
import importlib
import pathlib
import re

import torch
from torch import nn
from torch.nn.utils import prune
import torchvision

from open_lth.datasets import registry as datasets_registry
from open_lth.foundations import paths as engine_paths
from open_lth.foundations.errors import CorruptFileError, UserError
from open_lth.models import registry as models_registry
from open_lth.pruning.mask import Mask

State = dict[str, torch.Tensor]

_LEVEL_MODEL = re.compile(r'model_ep(\d+)_it(\d+)\.pth')
# What training scripts store the state dict under, and what they put before its names.
_WRAPPERS = ('model_state_dict', 'state_dict', 'model')
_PREFIXES = ('module.', '_orig_mod.')
# These draw their weights slowly, for nothing: those of the checkpoint follow.
_SLOW_TO_INITIALIZE = ('vgg', 'googlenet', 'inception')


def load_model(name: str, checkpoint: str, num_classes: int | None = None) -> tuple[nn.Module, pathlib.Path]:
    """(the model with the weights of the checkpoint, in evaluation mode; the file they came from).

    name: a torchvision architecture, `package.module:factory`, or a model of OpenLTH.
    checkpoint: a state dict, or the folder `level_K/main` of an OpenLTH run (its last model, and its mask).
    num_classes: by default that of the checkpoint's last layer; a factory is called with it only if it is given.
    """
    path, state = read_checkpoint(checkpoint)
    if num_classes is None and ':' not in name:
        num_classes = _num_classes(state)
    model = build_model(name, num_classes)
    _fill(model, state, name, path)
    return model.eval(), path


def build_model(name: str, num_classes: int | None = None) -> nn.Module:
    """A new model; see `load_model`."""
    if ':' in name:
        return _from_factory(name, {} if num_classes is None else {'num_classes': num_classes})
    architectures = torchvision.models.list_models(module=torchvision.models)
    if name in architectures:
        arguments = {'init_weights': False} if name.startswith(_SLOW_TO_INITIALIZE) else {}
        return torchvision.models.get_model(name, weights=None, num_classes=num_classes or 1000, **arguments)
    try:
        hparams = models_registry.get_default_hparams(name).model_hparams
    except UserError as error:
        close = difflib.get_close_matches(name, architectures, 3)
        hint = f'torchvision has {", ".join(close)}' if close else 'Give the name of a torchvision architecture'
        raise UserError(f'{error}. {hint}; package.module:factory names a model of your own') from error
    return models_registry.get(hparams, num_classes)


def known_input_shape(name: str) -> tuple[int, ...] | None:
    """(channels, height, width) of the data set an OpenLTH model is usually trained on; None for other models."""
    if ':' in name or name in torchvision.models.list_models(module=torchvision.models):
        return None
    return datasets_registry.image_shape(models_registry.get_default_hparams(name).dataset_hparams)


def read_checkpoint(checkpoint: str) -> tuple[pathlib.Path, State]:
    """(the file of the weights, the state dict with its masks multiplied in)."""
    path = pathlib.Path(checkpoint)
    if path.is_dir():
        return _read_level(path)
    return path, _multiply_in_prune_masks(_read_state(path), path)


def _read_level(folder: pathlib.Path) -> tuple[pathlib.Path, State]:
    steps = {file: tuple(map(int, match.groups())) for file in folder.iterdir()
             if (match := _LEVEL_MODEL.fullmatch(file.name))}
    if not steps:
        raise UserError(f'{folder} holds no model_ep*_it*.pth. Give the folder level_K/main of a run, or a file')
    if not Mask.exists(str(folder)):
        raise UserError(f'{engine_paths.mask(str(folder))} is missing. For a model without a mask give its file')
    path, mask = max(steps, key=steps.get), Mask.load(str(folder))
    state = _read_state(path)
    for name, keep in mask.items():
        if name not in state or state[name].shape != keep.shape:
            raise CorruptFileError(f"{engine_paths.mask(str(folder))}: the mask of '{name}' does not fit {path.name}")
        state[name] = state[name] * keep
    return path, state


def _read_state(path: pathlib.Path) -> State:
    with open(path, 'rb') as file:
        try:
            content = torch.load(file, map_location='cpu', weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file; all mean the same to the user
            raise CorruptFileError(f'{path} is damaged, or holds more than tensors. Save the weights with '
                                   'torch.save(model.state_dict(), FILE)') from error
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content or not all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()):
        raise CorruptFileError(f'{path} is no state dict (names and tensors). Save the weights with '
                               'torch.save(model.state_dict(), FILE)')
    state = dict(content)
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _multiply_in_prune_masks(state: State, path: pathlib.Path) -> State:
    """X_orig and X_mask, as torch.nn.utils.prune leaves them, become X. The order stays."""
    merged = {}
    for name, tensor in state.items():
        plain = name.removesuffix('_orig')
        if name.endswith('_mask') and f'{name.removesuffix("_mask")}_orig' in state:
            continue
        if plain != name and f'{plain}_mask' in state:
            mask = state[f'{plain}_mask']
            if mask.shape != tensor.shape:
                raise CorruptFileError(f"{path}: the mask of '{plain}' does not fit its weights")
            tensor = tensor * mask
        else:
            plain = name
        merged[plain] = tensor
    return merged


def _num_classes(state: State) -> int | None:
    """The number of outputs of the last layer that has weights."""
    sizes = [len(tensor) for name, tensor in state.items() if name.endswith('weight') and tensor.ndim > 1]
    return sizes[-1] if sizes else None


def _from_factory(name: str, arguments: dict[str, int]) -> nn.Module:
    module_name, _, attribute = name.partition(':')
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise UserError(f'--model={name}: cannot import it ({_first_line(error)}). '
                        'It is looked for beside main.py and in $PYTHONPATH') from error
    try:
        model = factory(**arguments)
    except Exception as error:
        call = ', '.join(f'{key}={value}' for key, value in arguments.items())
        raise UserError(f'--model={name}: {attribute}({call}) fails: {_first_line(error)}') from error
    if not isinstance(model, nn.Module):
        raise UserError(f'--model={name}: {attribute} returns no torch.nn.Module but a {type(model).__name__}')
    for module in model.modules():  # the masks that count are those of the checkpoint
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
    return model


def _fill(model: nn.Module, state: State, name: str, path: pathlib.Path) -> None:
    try:
        result = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f'{path} does not fit {name}: {str(error).strip().splitlines()[-1].strip()}') from error
    for keys, problem in ((result.missing_keys, 'it lacks'), (result.unexpected_keys, f'it has, unlike {name},')):
        if keys:
            others = f' and {len(keys) - 1} more' if len(keys) > 1 else ''
            raise UserError(f"{path} does not fit {name}: {problem} '{keys[0]}'{others}")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
