"""What defines an experiment; its name is a hash of its hyperparameters."""

import abc
from dataclasses import dataclass, fields
import hashlib
import os

from open_lth.foundations import paths
from open_lth.foundations.hparams import Hparams
from open_lth.platforms.platform import get_platform


@dataclass
class Desc(abc.ABC):
    """A dataclass whose Hparams-valued fields define the experiment."""

    @staticmethod
    @abc.abstractmethod
    def name_prefix(): pass

    @property
    def _hashed_hparams(self):
        by_name = {field.name: getattr(self, field.name) for field in fields(self)}
        return [by_name[name] for name in sorted(by_name) if isinstance(by_name[name], Hparams)]

    @property
    def hashname(self):
        """'{prefix}_{md5}' over the canonical hyperparameters, in alphabetical order of their field names."""
        canonical = ';'.join(str(hparams) for hparams in self._hashed_hparams)
        return f'{self.name_prefix()}_{hashlib.md5(canonical.encode("utf-8")).hexdigest()}'

    def save(self, output_location):
        """Writes hparams.log (primary process only)."""
        platform = get_platform()
        if not platform.is_primary_process:
            return
        platform.makedirs(output_location)
        with platform.open(paths.hparams(output_location), 'w') as fp:
            fp.write('\n'.join(hparams.display for hparams in self._hashed_hparams))

    @property
    @abc.abstractmethod
    def display(self): pass

    def __post_init__(self): pass


def join_run_path(*parts):
    """A path below the platform's root."""
    return os.path.join(get_platform().root, *parts)
