"""Scores by name: what is a weight worth? Larger is kept.

A score is a module with a function score(model, loader, *, seed) -> {prunable tensor's name: scores of its shape}. The
model is its own to change. The loader serves a few training examples per class.
"""

from dataclasses import dataclass
import re

from open_lth.foundations.errors import UserError
from open_lth.foundations.lazy import LazyRegistry

registered_scores = LazyRegistry({
    name: f'open_lth.pruning.scores.{name}:score'
    for name in ('random', 'magnitude', 'snip', 'grasp', 'graspabs', 'synflow')})

# How many examples of each class a score needs: 0, 1, or N as in its name, for example snip10.
N_IN_NAME = None
examples_per_class = dict(random=0, magnitude=0, synflow=1, snip=N_IN_NAME, grasp=N_IN_NAME, graspabs=N_IN_NAME)


@dataclass(frozen=True)
class NamedScore:
    name: str
    examples_per_class: int

    @property
    def function(self):
        return registered_scores[self.name]


def get(strategy):
    """The score a name such as 'magnitude' or 'snip10' stands for; UserError for any other."""
    known = ', '.join(f'{name}N' if examples_per_class[name] is N_IN_NAME else name for name in registered_scores)
    name, number = re.fullmatch(r'(.*?)(\d*)', strategy).groups()
    if name not in registered_scores or bool(number) != (examples_per_class[name] is N_IN_NAME):
        raise UserError(f'no such --strategy: {strategy}. Known: {known} (N = examples of each class)')
    if number and int(number) == 0:
        raise UserError(f'--strategy={strategy} looks at no examples; write for example {name}1')
    return NamedScore(name, int(number) if number else examples_per_class[name])
