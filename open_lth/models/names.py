"""Parsing of model names such as cifar_resnet_20_16."""


def numbers(model_name, prefix):
    """The numbers that follow '{prefix}_', each a positive int; None when the name is not of that form."""
    if not model_name.startswith(f'{prefix}_'):
        return None
    parts = model_name[len(prefix) + 1:].split('_')
    return [int(part) for part in parts] if all(is_positive_int(part) for part in parts) else None


def is_positive_int(text):
    """Whether the text is digits 0-9 only (str.isdigit knows more, such as superscripts) and not zero."""
    return text.isascii() and text.isdigit() and int(text) > 0
