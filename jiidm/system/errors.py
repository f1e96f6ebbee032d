"""Errors that a user can mend, and the signal that ends a job."""


class InputError(ValueError):
    """A mistake in what the user gave: one line that names the file and the value, what was expected, what to do."""


class SetupError(RuntimeError):
    """Something that this machine lacks: a line for each fault and its cure."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: `signal` is its number, the text what is to be said of it."""

    def __init__(self, signal, text="interrupted"):
        super().__init__(text)
        self.signal = signal
