"""The unstructured pruning methods that Figures 5 and 6 compare: adding one here adds it to tables and figures.

All are scored at initialisation, once per compression ratio, and count all convolutional and linear weights, as the
paper's scripts do. Iterative magnitude pruning (IMP), which makes all ratios in one chain, is the command `lottery`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DENSE = 'dense'
IMP = 'imp'


@dataclass(frozen=True)
class Method:
    """arguments: of the engine's branch `oneshot`; paper: the method's name in paper.json, '' if it is not there."""

    label: str
    arguments: Mapping[str, str]
    paper: str = ''


AT_INIT = {
    'random': Method('random', dict(strategy='random', schedule='one_shot'), 'random'),
    'magnitude': Method('magnitude at init', dict(strategy='magnitude', schedule='one_shot'), 'magnitude'),
    'snip': Method('SNIP', dict(strategy='snip')),
    'grasp': Method('GraSP', dict(strategy='grasp')),
    'synflow': Method('SynFlow', dict(strategy='synflow', schedule='exponential'), 'synflow'),
    'ntk_sap': Method('NTK-SAP', dict(strategy='ntk_sap'), 'ntk_sap'),
    'prospr': Method('ProsPr', dict(strategy='prospr')),
}

# In the order of tables and legends.
LABELS = {DENSE: 'dense', IMP: 'IMP (DNNShifter)'} | {name: method.label for name, method in AT_INIT.items()}
# Their names in paper.json.
IN_PAPER = {IMP: 'dnnshifter'} | {name: method.paper for name, method in AT_INIT.items()}
