"""How many weights are left after each round: numbers in, numbers out."""

from __future__ import annotations

import math

SCHEDULES = ('one_shot', 'linear', 'exponential')


def num_kept(num_weights: int, fraction: float) -> int:
    """floor((1 - fraction) * num_weights): how many weights stay when `fraction` of them goes.

    A product that is whole but for the rounding of the fraction counts as that number: of 1000, 0.9 leaves 100.
    """
    return math.floor(round((1 - fraction) * num_weights, 6))


def remaining(schedule: str, num_alive: int, num_kept: int, num_rounds: int) -> list[int]:
    """The number of weights alive after each round, from num_alive down to exactly num_kept.

    exponential: each round removes the same share of what is alive; linear: the same number; one_shot: all at once.
    Raises ValueError for an unknown schedule, no rounds, or more weights kept than there are.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f'no such schedule: {schedule}. Known: {", ".join(SCHEDULES)}')
    if num_rounds < 1:
        raise ValueError(f'pruning takes at least one round, not {num_rounds}')
    if not 0 <= num_kept <= num_alive:
        raise ValueError(f'{num_kept} weights cannot stay where {num_alive} are left')
    if schedule == 'one_shot':
        return [num_kept]
    shares = [t / num_rounds for t in range(1, num_rounds)]
    if schedule == 'linear':
        between = [num_alive - (num_alive - num_kept) * share for share in shares]
    else:
        between = [num_alive * (num_kept / num_alive) ** share if num_alive else 0 for share in shares]
    return [max(num_kept, math.floor(round(number, 6))) for number in between] + [num_kept]
