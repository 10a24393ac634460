"""Branches: a function whose annotated parameters become flags, hyperparameters and a part of the run's name."""

from dataclasses import field, make_dataclass
import inspect

from open_lth.foundations.hparams import Hparams

_TYPES = (str, float, int, bool)


def make_branch_hparams(function, flag_help=None):
    """The Hparams class with one field per parameter of `function` (self excepted), with its default.

    `flag_help` maps names of parameters to the help of their flags.
    Raises ValueError for a parameter without an annotation of type str, float, int, bool or Hparams.
    """
    names, _, _, defaults, *_ = inspect.getfullargspec(function)
    names = names[1:]
    annotations = function.__annotations__
    defaults = dict(zip(names[len(names) - len(defaults or ()):], defaults or ()))
    fields = []
    for name in names:
        kind = annotations.get(name)
        if not (isinstance(kind, type) and (kind in _TYPES or issubclass(kind, Hparams))):
            raise ValueError(f'branch argument {name} must be annotated as str, float, int, bool or Hparams')
        fields.append((name, kind, field(default=defaults[name])) if name in defaults else (name, kind))
    fields += [('_name', str, 'Branch Arguments'),
               ('_description', str, 'Arguments specific to the branch.')]
    namespace = {f'_{name}': text for name, text in (flag_help or {}).items()}
    return make_dataclass('BranchHparams', fields, bases=(Hparams,), namespace=namespace)


def list_branches(usage, registry):
    """The screen for a missing or unknown branch."""
    width = 82
    lines = [f'    * {usage} {name} [...] => {registry[name].description()}' for name in sorted(registry)]
    return '\n'.join(['=' * width, *lines, '=' * width])
