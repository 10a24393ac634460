"""This machine."""

from dataclasses import dataclass
import os

from open_lth.foundations.errors import UserError
from open_lth.platforms import base


@dataclass
class Platform(base.Platform):
    """Folders come from the flags, else from OPEN_LTH_ROOT and its like, else OpenLTH's defaults in the home folder."""

    root: str = None
    dataset_root: str = None
    imagenet_root: str = None
    tinyimagenet_root: str = None

    _root: str = 'The folder of all runs. Without it: $OPEN_LTH_ROOT, or ~/open_lth_data.'
    _dataset_root: str = 'The folder of data sets. Without it: $OPEN_LTH_DATASET_ROOT, or ~/open_lth_datasets.'
    _imagenet_root: str = 'The folder holding train/ and val/ of ImageNet. Without it: $OPEN_LTH_IMAGENET_ROOT.'
    _tinyimagenet_root: str = 'The unzipped tiny-imagenet-200. Without it: $OPEN_LTH_TINYIMAGENET_ROOT.'

    def __post_init__(self):
        super().__post_init__()
        self.root = _folder(self.root, 'OPEN_LTH_ROOT', '~/open_lth_data')
        self.dataset_root = _folder(self.dataset_root, 'OPEN_LTH_DATASET_ROOT', '~/open_lth_datasets')
        self.imagenet_root = _folder(self.imagenet_root, 'OPEN_LTH_IMAGENET_ROOT')
        self.tinyimagenet_root = _folder(self.tinyimagenet_root, 'OPEN_LTH_TINYIMAGENET_ROOT')


def _folder(given, variable, default=None):
    folder = given or os.environ.get(variable) or default
    return os.path.expanduser(folder) if folder else None


def require_folder(folder, flag, what):
    """`folder`, or a UserError that says which flag and environment variable to set."""
    if not folder:
        raise UserError(f'{what} needs its folder: give --{flag}=FOLDER or set OPEN_LTH_{flag.upper()}.')
    return folder
