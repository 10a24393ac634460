"""What is wrong with a package, in one line."""


class PackageError(ValueError):
    """The bytes are no package, or a damaged one, or one that lies; or a variant cannot be packed."""
