"""Residual networks for Tiny ImageNet: tinyimagenet_resnet_D[_W], or tinyimagenet_modifiedresnet_D[_W].

The first keeps ImageNet's stem; the second has a 3x3 stem and no max pool, for small images. As in the DNNShifter
authors' runs, the output layer has 1000 units unless asked otherwise, although the data set has 200 classes.
"""

from open_lth.models import base, imagenet_resnet


class Model(imagenet_resnet.Model):
    _PREFIXES = ('tinyimagenet_resnet', 'tinyimagenet_modifiedresnet')

    @staticmethod
    def default_hparams():
        return base.default_desc('tinyimagenet', 256, 'tinyimagenet_resnet_50', dict(
            lr=0.2, training_steps='200ep', momentum=0.9, milestone_steps='100ep,150ep', gamma=0.1,
            warmup_steps='5ep', weight_decay=1e-4))
