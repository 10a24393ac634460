"""Models by name: built, frozen, loaded."""

import torch

from open_lth.foundations import paths
from open_lth.foundations.errors import CorruptFileError, UserError
from open_lth.models import (
    bn_initializers,
    cifar_narrowvgg,
    cifar_resnet,
    cifar_vgg,
    imagenet_resnet,
    initializers,
    mnist_lenet,
    tinyimagenet_resnet,
)
from open_lth.platforms.platform import get_platform

registered_models = [mnist_lenet.Model, cifar_resnet.Model, cifar_vgg.Model, cifar_narrowvgg.Model,
                     imagenet_resnet.Model, tinyimagenet_resnet.Model]


def get(model_hparams, outputs=None):
    """A newly initialized model; UserError for unknown names."""
    validate(model_hparams)
    initialize_weights = getattr(initializers, model_hparams.model_init)
    initialize_batchnorm = getattr(bn_initializers, model_hparams.batchnorm_init)

    def initializer(module):
        initialize_weights(module)
        initialize_batchnorm(module)

    model = _family(model_hparams.model_name).get_model_from_name(model_hparams.model_name, initializer, outputs)
    _check_exceptions(model, model_hparams)
    _freeze(model, model_hparams)
    return model


def _check_exceptions(model, model_hparams):
    for name in (model_hparams.others_frozen_exceptions or '').split(','):
        if name and name not in model.state_dict():
            raise UserError(f'--others_frozen_exceptions: {model_hparams.model_name} has no {name}')


def _freeze(model, model_hparams):
    batchnorm_names = {f'{name}.{kind}' for name, module in model.named_modules()
                       if isinstance(module, torch.nn.BatchNorm2d) for kind in ('weight', 'bias')}
    exceptions = (model_hparams.others_frozen_exceptions or '').split(',')
    for name, parameter in model.named_parameters():
        if name in batchnorm_names:
            frozen = model_hparams.batchnorm_frozen
        elif name in model.output_layer_names:
            frozen = model_hparams.output_frozen
        else:
            frozen = model_hparams.others_frozen and name not in exceptions
        if frozen:
            parameter.requires_grad = False


def load(save_location, save_step, model_hparams, outputs=None):
    """The model saved at a step. FileNotFoundError when there is none, CorruptFileError when it does not fit.

    OpenLTH compatibility: a model is built to load the weights into, which consumes random draws.
    """
    path = paths.model(save_location, save_step)
    state_dict = get_platform().load_model(path, map_location=torch.device('cpu'))
    model = get(model_hparams, outputs)
    load_state_dict(model, state_dict, path)
    return model


def load_state_dict(model, state_dict, path):
    """As the module's own, with an error that names the file."""
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, AttributeError, TypeError) as e:
        raise CorruptFileError(f'{path} holds the weights of another model ({str(e).strip().splitlines()[-1]}). '
                               'Move it away, or use the hyperparameters it was made with.') from e


def exists(save_location, save_step):
    return get_platform().exists(paths.model(save_location, save_step))


def get_default_hparams(model_name):
    """The family's LotteryDesc with this model's name."""
    defaults = _family(model_name).default_hparams()
    defaults.model_hparams.model_name = model_name
    return defaults


def validate_fit(model_hparams, image_shape):
    """Raises UserError unless the model can be built and takes images of this shape (channels, height, width)."""
    with torch.device('meta'), torch.no_grad():  # shapes only: no memory, no random draws
        model = get(model_hparams).eval()
        try:
            model(torch.empty(1, *image_shape))
        except RuntimeError as e:
            raise UserError(f'{model_hparams.model_name} does not take images of '
                            f'{"x".join(map(str, image_shape))} ({str(e).splitlines()[0]})') from e


def validate(model_hparams):
    """Raises UserError for unknown names; builds nothing."""
    _family(model_hparams.model_name)
    for module, kind in ((initializers, 'model_init'), (bn_initializers, 'batchnorm_init')):
        name = getattr(model_hparams, kind)
        known = _public_functions(module)
        if name not in known:
            raise UserError(f'no such --{kind}: {name}. Known: {", ".join(sorted(known))}')


def _public_functions(module):
    return {name for name, value in vars(module).items()
            if callable(value) and not name.startswith('_') and not isinstance(value, type)}


def _family(model_name):
    for family in registered_models:
        if family.is_valid_model_name(model_name):
            return family
    raise UserError(f'no such model: {model_name}. Known: mnist_lenet_N[_N...], cifar_resnet_N[_W], cifar_vgg_D, '
                    'cifar_narrowvgg_D_W, imagenet_resnet_D[_W], tinyimagenet_resnet_D[_W], '
                    'tinyimagenet_modifiedresnet_D[_W]')
