"""How many images a second training steps process, for each combination of the fast training options.

    python benchmarks/train_step.py [--models=cifar_vgg_16,cifar_resnet_20] [--batch_size=128] [--compile]

Random CIFAR-10-shaped images already on the device. Forward pass, loss, backward pass, SGD with momentum, as `train`
does them. Combinations run in turn, round after round; ratios are to plain fp32 in the same round.
"""

import argparse
import itertools
from pathlib import Path
import statistics
import sys
import time

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from open_lth.foundations.hparams import TrainingHparams  # noqa: E402
from open_lth.models import registry  # noqa: E402
from open_lth.training.train import Stepper  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default='cifar_vgg_16,cifar_resnet_20')
    parser.add_argument('--batch_size', type=int, default=128)
    parser.add_argument('--seconds', type=float, default=5, help='of each measurement')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--compile', action='store_true', help='also measure torch.compile (minutes of compilation)')
    args = parser.parse_args()

    devices = ['cpu'] + (['cuda'] if torch.cuda.is_available() else [])
    for device, model_name in itertools.product(devices, args.models.split(',')):
        print(f'{model_name}, batch {args.batch_size}, {device}, {torch.get_num_threads()} threads, '
              f'torch {torch.__version__}')
        steppers = {label: make_stepper(model_name, device, options)
                    for label, options in combinations(device, args.compile)}
        rates = {label: [] for label in steppers}
        for _ in range(args.rounds):
            for label, step in steppers.items():
                rates[label].append(images_per_second(step, device, args.batch_size, args.seconds))
        for label in steppers:
            ratios = [ours / plain for ours, plain in zip(rates[label], rates['fp32'])]
            print(f'  {label:<28} {statistics.median(rates[label]):>9,.1f} images/s  '
                  f'{statistics.median(ratios):5.2f}x ({min(ratios):.2f}-{max(ratios):.2f}, n={args.rounds})')


def combinations(device, with_compile):
    amps = [None, 'bf16'] + (['fp16'] if device == 'cuda' else [])
    for amp, channels_last, compiled in itertools.product(amps, (False, True), (False, True)[:1 + with_compile]):
        label = ' '.join([amp or 'fp32'] + ['channels_last'] * channels_last + ['compile'] * compiled)
        yield label, dict(amp=amp, channels_last=channels_last, compile=compiled)


def make_stepper(model_name, device, options):
    defaults = registry.get_default_hparams(model_name)
    training_hparams = TrainingHparams(**{**vars_of(defaults.training_hparams), **options})
    torch.manual_seed(0)
    return Stepper(training_hparams, registry.get(defaults.model_hparams), 391, torch.device(device))


def vars_of(hparams):
    return {name: value for name, value in vars(hparams).items() if not name.startswith('_')}


def images_per_second(stepper, device, batch_size, seconds):
    images = torch.randn(batch_size, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (batch_size,), device=device)
    stepper.step(images, labels)
    synchronize(device)
    num_steps, start = 0, time.perf_counter()
    while num_steps < 2 or time.perf_counter() - start < seconds:
        stepper.step(images, labels)
        synchronize(device)
        num_steps += 1
    return num_steps * batch_size / (time.perf_counter() - start)


def synchronize(device):
    if device == 'cuda':
        torch.cuda.synchronize()


if __name__ == '__main__':
    main()
