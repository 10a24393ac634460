"""VGG of any width for small machines: cifar_narrowvgg_D_W is cifar_vgg_D whose first layer has W channels, not 64.

A family of its own, because OpenLTH has no widths for its VGGs. cifar_narrowvgg_D_64 is cifar_vgg_D, weight for weight.
"""

from open_lth.models import cifar_vgg, names

_WIDTH = 64


class Model(cifar_vgg.Model):
    @staticmethod
    def is_valid_model_name(model_name):
        sizes = names.numbers(model_name, 'cifar_narrowvgg')
        return sizes is not None and len(sizes) == 2 and cifar_vgg.Model.is_valid_model_name(f'cifar_vgg_{sizes[0]}')

    @staticmethod
    def get_model_from_name(model_name, initializer, outputs=None):
        if not Model.is_valid_model_name(model_name):
            raise ValueError(f'invalid model name: {model_name}')
        depth, width = names.numbers(model_name, 'cifar_narrowvgg')
        plan = [entry if entry == 'M' else entry // _WIDTH * width for entry in cifar_vgg.PLANS[depth]]
        return Model(plan, initializer, outputs or 10)

    @staticmethod
    def default_hparams():
        defaults = cifar_vgg.Model.default_hparams()
        defaults.model_hparams.model_name = 'cifar_narrowvgg_16_16'
        return defaults
