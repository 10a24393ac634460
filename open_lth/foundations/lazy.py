"""A registry whose entries are imported when they are used, so that listing commands does not import torch."""

import importlib


class LazyRegistry(dict):
    """A dict from name to object; a value given as the text 'module:attribute' (or 'module:') is imported when used."""

    def __getitem__(self, name):
        value = super().__getitem__(name)
        if isinstance(value, str):
            module, _, attribute = value.partition(':')
            value = importlib.import_module(module)
            value = getattr(value, attribute) if attribute else value
            self[name] = value
        return value

    def get(self, name, default=None):
        return self[name] if name in self else default  # noqa: SIM401 (dict.get would not import)

    def values(self):
        return [self[name] for name in self]

    def items(self):
        return [(name, self[name]) for name in self]
