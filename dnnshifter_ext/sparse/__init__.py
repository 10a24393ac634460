"""Hybrid execution: layers of which few weights are left run on kernels that touch only those.

    filters.py       the non-zero weights of a layer and their positions
    kernels.c        direct sparse convolution
    library.py       compiles it on first use, and finds the threads it runs on
    convolution.py   numpy arrays in and out; without a compiler, scipy's sparse products
    layers.py        the same as torch modules
    hybrid.py        a model with some of its layers sparse
    choice.py        which: measured on this machine
"""
