"""Errors whose message alone tells a user what went wrong and what to do; the command line prints it as one line."""


class UserError(ValueError):
    """Something the user gave (flag, hyperparameter, file) cannot be used."""


class CorruptFileError(UserError):
    """A file exists but cannot be read as what it should be. It is never overwritten."""
