"""The bar that a person at a terminal sees of a running training."""

import sys
import time

_REFRESH_S = 0.2


class Bar:
    """One line: title, epoch, loss, last test accuracy, images/s, time left."""

    def __init__(self, title):
        self._title = title
        self._bar = None

    def start(self, start_step, end_step):
        from tqdm import tqdm
        self._end_step = end_step
        self._num_images, self._since = 0, time.monotonic()
        self._parts = []
        self._bar = tqdm(total=end_step.iteration, initial=start_step.iteration, desc=self._title, file=sys.stderr,
                         dynamic_ncols=True, bar_format='{desc} |{bar:20}| {elapsed}, eta {remaining}')

    def update(self, step, num_images, loss, logger):
        """After each iteration. The loss is read from the device only when the line is drawn again."""
        self._bar.update(1)
        self._num_images += num_images
        elapsed = time.monotonic() - self._since
        if elapsed >= _REFRESH_S or step.iteration + 1 == self._end_step.iteration:
            self._parts = [f'ep {step.ep + 1}/{-(-self._end_step.iteration // step.iterations_per_epoch)}',
                           f'loss {float(loss):.3f}', f'{self._num_images / elapsed:.0f} images/s']
            self._num_images, self._since = 0, time.monotonic()
            self._draw(logger)

    def _draw(self, logger):
        accuracies = logger.get_data('test_accuracy')
        test = [f'test {100 * accuracies[-1][1]:.2f}%'] if accuracies else []
        self._bar.set_description_str('  '.join([self._title, *self._parts, *test]))

    def close(self, logger):
        """After the last evaluation, which the line left on the screen shows."""
        if self._bar is not None:
            self._draw(logger)
            self._bar.close()


class NoBar:
    """In place of a Bar where there is nobody to look at it."""

    def start(self, start_step, end_step): pass

    def update(self, step, num_images, loss, logger): pass

    def close(self, logger): pass
