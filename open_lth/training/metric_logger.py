"""Named values over time, kept in the order in which they first came."""

from open_lth.foundations import paths
from open_lth.foundations.errors import CorruptFileError
from open_lth.platforms.platform import get_platform


class MetricLogger:
    def __init__(self):
        self._log = {}

    def add(self, name, step, value):
        """Records a value; a second one for the same name and step replaces the first, in its place."""
        self._log[(name, step.iteration)] = value

    def __str__(self):
        return '\n'.join(f'{name},{iteration},{value}' for (name, iteration), value in self._log.items())

    @staticmethod
    def create_from_string(text):
        """The inverse of `str`; ValueError for text that is not a log."""
        logger = MetricLogger()
        if text.strip():
            for line in text.strip().split('\n'):
                name, iteration, value = line.split(',')
                logger._log[(name, int(iteration))] = float(value)
        return logger

    @staticmethod
    def create_from_file(directory):
        path = paths.logger(directory)
        try:
            with get_platform().open(path) as fp:
                text = fp.read()
            return MetricLogger.create_from_string(text)
        except ValueError as e:
            raise CorruptFileError(f'{path} is not a log of name,iteration,value lines ({e}). Restore it.') from e

    def save(self, location):
        """Writes the log (primary process only)."""
        platform = get_platform()
        if not platform.is_primary_process:
            return
        platform.makedirs(location)
        with platform.open(paths.logger(location), 'w') as fp:
            fp.write(str(self))

    @property
    def names(self):
        return list(dict.fromkeys(name for name, _ in self._log))

    def get_data(self, desired_name, step=None):
        """[(iteration, value), ...] by iteration; with a step, the value there or None."""
        if step is not None:
            return self._log.get((desired_name, step.iteration))
        return sorted((iteration, value) for (name, iteration), value in self._log.items() if name == desired_name)
