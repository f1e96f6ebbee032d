"""Errors that a user can mend."""


class InputError(ValueError):
    """A mistake in the input. One line: the file and the value, what was expected, what to do."""
