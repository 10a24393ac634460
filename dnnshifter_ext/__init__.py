"""DNNShifter: turns sparse (masked) CNNs into smaller dense ones that compute the same, and compares them.

    conversion = dnnshifter_ext.convert(model, example_inputs)
    conversion.model, conversion.plan, conversion.report

Names are imported when they are first used, so that `import dnnshifter_ext` costs nothing.
"""

import importlib

_HOME = {
    'convert': 'conversion',
    'Conversion': 'conversion',
    'compare': 'verify',
    'Comparison': 'verify',
    'RemovalPlan': 'plan',
    'profile': 'profiler',
    'profile_together': 'profiler',
    'Profile': 'profiler',
    'load': 'export',
    'save': 'export',
    'Runtime': 'runtime',
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
