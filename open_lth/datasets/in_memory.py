"""A loader for data sets that fit in memory: one uint8 tensor on the training device, batches made in bulk.

It serves the very images, labels and order of `base.DataLoader` without workers, and leaves torch's generator in the
same state, because it takes the same 32-bit draws: per image, one for the flip and two for the crop. (torch's CPU
generator hands `rand` and `randint` out of one stream: `rand` is the low 24 bits / 2^24, `randint(n)` is the draw
modulo n.)

Shapes: N = examples, B = batch, C = channels, H and W = image sides, P = padding of the crop.
"""

import math

import numpy as np
import torch
import torchvision

from open_lth.datasets import base
from open_lth.foundations import rng
from open_lth.platforms.platform import get_platform


def supports(dataset):
    """Whether the data set's images are arrays, and its transforms are among those known here."""
    return (isinstance(dataset, base.ImageDataset)
            and isinstance(dataset._examples, np.ndarray) and dataset._examples.dtype == np.uint8
            and not dataset._joint_image_transforms and not dataset._joint_tensor_transforms
            and _augmentation(dataset) is not None and _normalization(dataset) is not None)


def _augmentation(dataset):
    """(flips, padding) of the data set's augmentation; None when it has any other."""
    transforms = list(dataset._image_transforms)
    flips = bool(transforms) and isinstance(transforms[0], torchvision.transforms.RandomHorizontalFlip) \
        and transforms[0].p == 0.5
    if flips:
        transforms.pop(0)
    if not transforms:
        return flips, 0
    crop = transforms.pop(0)
    known = not transforms and isinstance(crop, torchvision.transforms.RandomCrop) \
        and isinstance(crop.padding, int) and crop.padding_mode == 'constant' and crop.fill == 0 \
        and tuple(crop.size) == dataset._examples.shape[1:3]
    return (flips, crop.padding) if known else None


def _normalization(dataset):
    transforms = dataset._tensor_transforms
    known = len(transforms) == 1 and isinstance(transforms[0], torchvision.transforms.Normalize)
    return (transforms[0].mean, transforms[0].std) if known else None


class DataLoader:
    """As `base.DataLoader` with 0 workers; the batches are on the platform's device."""

    def __init__(self, dataset, batch_size):
        """Raises ValueError for a data set that `supports` does not accept."""
        if not supports(dataset):
            raise ValueError(f'{type(dataset).__module__} has transforms that only the image-by-image loader knows')
        self.dataset = dataset
        self.batch_size = batch_size
        self.sampler = base.ShuffleSampler(len(dataset))
        self.epoch_start_rng_state = None
        self._flips, self._padding = _augmentation(dataset)

        self._device = get_platform().torch_device
        images_NHWC = torch.from_numpy(dataset._examples.reshape(*dataset._examples.shape[:3], -1))
        p = self._padding
        self._padded_NCHW = torch.nn.functional.pad(images_NHWC.permute(0, 3, 1, 2), (p, p, p, p)) \
            .contiguous().to(self._device)
        self._labels_N = torch.from_numpy(dataset._labels).to(self._device)
        self._mean_C11, self._std_C11 = (
            torch.as_tensor(values, dtype=torch.float32, device=self._device).view(-1, 1, 1)
            for values in _normalization(dataset))

    def shuffle(self, seed):
        self.sampler.shuffle_dataorder(seed)

    @property
    def iterations_per_epoch(self):
        return math.ceil(len(self.dataset) / self.batch_size)

    def __len__(self):
        return self.iterations_per_epoch

    def __iter__(self):
        self.epoch_start_rng_state = rng.get_rng_state()
        torch.empty((), dtype=torch.int64).random_()  # torch's loader draws its workers' base seed here
        return self._batches()

    def _batches(self):
        for index_B in self.sampler.order().split(self.batch_size):
            augmentation = self._draw(len(index_B))
            index_B = index_B.to(self._device)
            yield self._normalize(self._augment(index_B, *augmentation)), self._labels_N[index_B]

    def _draw(self, batch_size):
        """(flip, top, left) of each image; None for what the data set does not do."""
        per_image = self._flips + (2 if self._padding else 0)
        if per_image == 0:
            return None, None, None
        draws = iter(draw_uint32(batch_size * per_image).view(batch_size, per_image).to(self._device).unbind(1))
        flip_B = (next(draws) & 0xFFFFFF) < 2**23 if self._flips else None
        offsets = 2 * self._padding + 1
        return (flip_B, *(next(draws) % offsets if self._padding else None for _ in range(2)))

    def _augment(self, index_B, flip_B, top_B, left_B):
        """uint8 images of shape [B, C, H, W]: flipped, then cropped out of their padded selves."""
        if flip_B is None and top_B is None:
            return self._padded_NCHW.index_select(0, index_B)
        _, channels, padded_height, padded_width = self._padded_NCHW.shape
        zeros_B = torch.zeros_like(index_B)
        row_BH = _window(zeros_B if top_B is None else top_B, padded_height - 2 * self._padding)
        col_BW = _window(zeros_B if left_B is None else left_B, padded_width - 2 * self._padding)
        if flip_B is not None:
            col_BW = torch.where(flip_B[:, None], padded_width - 1 - col_BW, col_BW)
        # Whole rows first, as one selection among the N*C*H rows of all images; then columns within them.
        channel_BC = index_B[:, None] * channels + torch.arange(channels, device=self._device)
        row_BCH = channel_BC[:, :, None] * padded_height + row_BH[:, None, :]
        rows_BCHW = self._padded_NCHW.view(-1, padded_width).index_select(0, row_BCH.reshape(-1)) \
            .view(*row_BCH.shape, padded_width)
        return rows_BCHW.gather(3, col_BW[:, None, None, :].expand(*row_BCH.shape, col_BW.shape[1]))

    def _normalize(self, images_BCHW):
        """The arithmetic of torchvision's ToTensor and Normalize, in their order, hence with their bits."""
        return images_BCHW.to(torch.float32).div_(255).sub_(self._mean_C11).div_(self._std_C11)


def _window(start_B, length):
    """Indices start..start+length-1 per image (shape [B, length])."""
    return start_B[:, None] + torch.arange(length, device=start_B.device)


def draw_uint32(num):
    """The next `num` 32-bit draws of torch's CPU generator (int64, shape [num])."""
    pairs = torch.empty(num // 2, dtype=torch.int64).random_(-2**63, None)
    draws = torch.stack([pairs >> 32, pairs], dim=1).view(-1) & 0xFFFFFFFF
    if num % 2:
        # One draw alone: its two halves cannot come from a 64-bit draw, so take it twice from the same state.
        draws = torch.cat([draws, _draw_one_uint32()])
    return draws


def _draw_one_uint32():
    state = torch.get_rng_state()
    high = torch.empty(1, dtype=torch.int64).random_(-2**63, None) >> 32
    torch.set_rng_state(state)
    torch.rand(1)  # advances the generator by the one draw taken
    return high & 0xFFFFFFFF
