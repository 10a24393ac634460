"""An independent implementation of OpenLTH's interface: lottery-ticket experiments on images.

Same commands, hyperparameters, run directories, files and numbers as OpenLTH (Frankle et al.), written from a
description of its behaviour. Nothing is imported here; `open_lth.main.main` is the command line.
"""
