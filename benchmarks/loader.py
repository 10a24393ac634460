"""How many images a second the loaders serve: in bulk from memory against image by image.

    python benchmarks/loader.py [--batch_size=128] [--threads=1] [--seconds=3]

CIFAR-10-shaped random images with CIFAR-10's augmentation, no training. Both loaders serve the very same images; this
is checked first. The ratio is what counts: both are measured in turn in one process.
"""

import argparse
from pathlib import Path
import platform as machine
import statistics
import sys
import time

import numpy as np
import torch
import torchvision

sys.path.insert(0, str(Path(__file__).parent.parent))

from open_lth.datasets import base, cifar10, in_memory  # noqa: E402


def images_per_second(loader, seconds):
    """Over at least one epoch's start and `seconds` of serving."""
    num_images, start = 0, time.perf_counter()
    while True:
        for images, _ in loader:
            num_images += len(images)
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return num_images / elapsed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--seconds', type=float, default=3, help='of each measurement')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1, help='for both; one core against one core by default')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    random = np.random.RandomState(0)
    images = random.randint(0, 256, (20000, 32, 32, 3)).astype(np.uint8)
    labels = random.randint(0, 10, 20000)

    print(f'{machine.processor() or machine.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, '
          f'batch {args.batch_size}')
    print(f'{"augmentation":>12}  {"image by image":>16}  {"in memory":>16}  {"ratio (min-max)":>22}')
    for augment in (True, False):
        dataset = cifar10.Dataset(images, labels, cifar_augmentation() if augment else [])
        loaders = [base.DataLoader(dataset, args.batch_size, num_workers=0),
                   in_memory.DataLoader(dataset, args.batch_size)]
        for loader in loaders:
            loader.shuffle(None)
        check_equal(loaders)
        rates = np.array([[images_per_second(loader, args.seconds) for loader in loaders]
                          for _ in range(args.rounds)])
        ratios = rates[:, 1] / rates[:, 0]
        print(f'{"yes" if augment else "no":>12}  {statistics.median(rates[:, 0]):>9,.0f} img/s  '
              f'{statistics.median(rates[:, 1]):>9,.0f} img/s  '
              f'{statistics.median(ratios):>6.1f}x ({ratios.min():.1f}-{ratios.max():.1f}, n={args.rounds})')


def cifar_augmentation():
    return [torchvision.transforms.RandomHorizontalFlip(), torchvision.transforms.RandomCrop(32, 4)]


def check_equal(loaders):
    served = []
    for loader in loaders:
        torch.manual_seed(0)
        batches = iter(loader)
        served.append([next(batches) for _ in range(3)])
    for (images_1, labels_1), (images_2, labels_2) in zip(*served):
        assert torch.equal(images_1, images_2) and torch.equal(labels_1, labels_2), 'the loaders differ'


if __name__ == '__main__':
    main()
