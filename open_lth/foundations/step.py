"""A moment in training: a number of iterations, known together with how many make an epoch."""

from open_lth.foundations.errors import UserError


class Step:
    """`iteration` iterations of training on a data set with `iterations_per_epoch` iterations per epoch.

    Raises ValueError for a negative iteration or an epoch without iterations.
    """

    def __init__(self, iteration, iterations_per_epoch):
        if iteration < 0:
            raise UserError(f'a step cannot be negative: iteration {iteration}')
        if iterations_per_epoch <= 0:
            raise UserError(f'an epoch needs at least one iteration, not {iterations_per_epoch}')
        self._iteration = int(iteration)
        self._iterations_per_epoch = int(iterations_per_epoch)

    @staticmethod
    def from_iteration(iteration, iterations_per_epoch):
        return Step(iteration, iterations_per_epoch)

    @staticmethod
    def from_epoch(epoch, iteration, iterations_per_epoch):
        """`iteration` may exceed an epoch."""
        return Step(epoch * iterations_per_epoch + iteration, iterations_per_epoch)

    @staticmethod
    def from_str(text, iterations_per_epoch):
        """Reads '{E}ep', '{I}it' or '{E}ep{I}it', written without spaces or leading zeros; else ValueError."""
        malformed = UserError(f"malformed step '{text}': write for example 10ep, 500it or 10ep500it")
        epoch_text, has_epoch, rest = text.partition('ep')
        if not has_epoch:
            epoch_text, rest = None, text
        iteration_text, has_iteration, tail = rest.partition('it')
        if not has_iteration:
            iteration_text, tail = None, rest
        if tail or (epoch_text is None and iteration_text is None):
            raise malformed
        try:
            epoch, iteration = (None if part is None else int(part) for part in (epoch_text, iteration_text))
        except ValueError:
            raise malformed from None
        canonical = ('' if epoch is None else f'{epoch}ep') + ('' if iteration is None else f'{iteration}it')
        if canonical != text:
            raise malformed
        return Step.from_epoch(epoch or 0, iteration or 0, iterations_per_epoch)

    @staticmethod
    def zero(iterations_per_epoch):
        return Step(0, iterations_per_epoch)

    @staticmethod
    def str_is_zero(text):
        """OpenLTH compatibility: exactly these three spellings count as zero ('0it0ep' does not)."""
        return text in ('0ep', '0it', '0ep0it')

    @property
    def iteration(self):
        return self._iteration

    @property
    def iterations_per_epoch(self):
        return self._iterations_per_epoch

    @property
    def ep(self):
        return self._iteration // self._iterations_per_epoch

    @property
    def it(self):
        return self._iteration % self._iterations_per_epoch

    def _comparable(self, other):
        if not isinstance(other, Step):
            raise ValueError(f'cannot compare a Step with {type(other).__name__}')
        if self._iterations_per_epoch != other._iterations_per_epoch:
            raise ValueError('cannot compare steps whose epochs differ in length: '
                             f'{self._iterations_per_epoch} and {other._iterations_per_epoch} iterations')
        return other._iteration

    def __lt__(self, other): return self._iteration < self._comparable(other)
    def __le__(self, other): return self._iteration <= self._comparable(other)
    def __eq__(self, other): return self._iteration == self._comparable(other)
    def __ne__(self, other): return self._iteration != self._comparable(other)
    def __gt__(self, other): return self._iteration > self._comparable(other)
    def __ge__(self, other): return self._iteration >= self._comparable(other)

    __hash__ = None

    def __str__(self):
        return f'(iteration {self._iteration}; {self._iterations_per_epoch} per epoch)'

    __repr__ = __str__
