"""Parsing of model names such as cifar_resnet_20_16."""


def numbers(model_name, prefix):
    """The numbers that follow '{prefix}_', each a positive int; None when the name is not of that form."""
    if not model_name.startswith(f'{prefix}_'):
        return None
    parts = model_name[len(prefix) + 1:].split('_')
    return [int(part) for part in parts] if all(part.isdigit() and int(part) > 0 for part in parts) else None
