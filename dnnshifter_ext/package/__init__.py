"""Module 7: the portfolio package, one file with all variants of a model, made to be small and to be read fast.

    files.save('vgg16.dnns', [models.variant('level_3', model, profile), ...])     # needs torch
    package = files.load('vgg16.dnns')                                             # numpy and the standard library
    package.variants[0].dense('layers.0.conv.weight'), package.variants[0].sparse('layers.0.conv.weight')

The parts: `container` is the file as bytes, `layouts` one tensor as streams of bytes, `deflate` one stream compressed,
`sparse_tensor` a tensor by its non-zeros; `files` is the rim. Only `models` imports torch. docs/portfolio_format.md
describes the format, byte by byte.
"""

from dnnshifter_ext.package.container import Package, PackedVariant, Variant, read, write
from dnnshifter_ext.package.errors import PackageError
from dnnshifter_ext.package.sparse_tensor import SparseTensor

__all__ = ['Package', 'PackageError', 'PackedVariant', 'SparseTensor', 'Variant', 'read', 'write']
