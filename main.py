#!/usr/bin/env python
"""The command line of the project: OpenLTH's commands, with DNNShifter's conversion after every pruning level."""

import dnnshifter_ext.install
import experiments.install
import open_lth.main

if __name__ == '__main__':
    dnnshifter_ext.install.install()
    experiments.install.install()
    open_lth.main.main()
