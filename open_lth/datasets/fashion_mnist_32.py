"""Fashion-MNIST as 32x32 colour images, so that the CIFAR models accept it: 2 black pixels around, grey three times."""

import numpy as np

from open_lth.datasets import base, fashion_mnist

DataLoader = base.DataLoader


class Dataset(fashion_mnist.Dataset):
    IMAGE_SHAPE = (3, 32, 32)

    def __init__(self, examples, labels):
        """Takes the 28x28 grey images of the files (uint8, [N, 28, 28])."""
        super().__init__(np.pad(examples, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, axis=3), labels)
