"""One training iteration: forward, loss, backward, update, and the next learning rate."""

import contextlib

import torch

from open_lth.models.base import DataParallel, DistributedDataParallel
from open_lth.platforms.platform import get_platform
from open_lth.training import optimizers

_AMP_DTYPES = {None: None, 'bf16': torch.bfloat16, 'fp16': torch.float16}


class Stepper:
    """Moves the model to the device in the memory format asked for, wraps it for several GPUs, and updates it.

    Attributes: `model` (wrapped), `optimizer`, `lr_schedule`.
    """

    def __init__(self, training_hparams, model, iterations_per_epoch, device):
        self._device = device
        self._memory_format = torch.channels_last if training_hparams.channels_last else torch.preserve_format
        model.to(device, memory_format=self._memory_format)
        self.optimizer = optimizers.get_optimizer(training_hparams, model)
        self.lr_schedule = optimizers.get_lr_schedule(training_hparams, self.optimizer, iterations_per_epoch)

        amp = 'fp16' if training_hparams.apex_fp16 else training_hparams.amp
        self._amp_dtype = _AMP_DTYPES[amp]
        if amp == 'fp16':
            # The scaler travels with the optimiser, so that checkpoints find it.
            self.optimizer.grad_scaler = torch.amp.GradScaler(device.type)

        platform = get_platform()
        if platform.is_distributed:
            model = DistributedDataParallel(model, device_ids=[platform.rank])
        elif platform.is_parallel:
            model = DataParallel(model)
        self.model = model
        self._forward = torch.compile(model) if training_hparams.compile else model

    def step(self, examples, labels):
        """Updates the model on one batch and returns its loss (a scalar tensor on the device)."""
        examples = examples.to(self._device, memory_format=self._memory_format)
        labels = labels.to(self._device)
        self.optimizer.zero_grad()
        self.model.train()
        with self._autocast():
            loss = self.model.loss_criterion(self._forward(examples), labels)
        self._update(loss)
        self.lr_schedule.step()
        return loss.detach()

    def _autocast(self):
        if self._amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self._amp_dtype)

    def _update(self, loss):
        scaler = getattr(self.optimizer, 'grad_scaler', None)
        if scaler is None:
            loss.backward()
            self.optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(self.optimizer)
            scaler.update()
