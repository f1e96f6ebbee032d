"""Errors that a user can mend, and the signal that ends a job."""


class InputError(ValueError):
    """A mistake in the input. One line: the file and the value, what was expected, what to do."""


class SetupError(RuntimeError):
    """Something is missing on this machine. A line for each fault and its cure."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM, or the end of the time that a job was given.

    Args:
        signal: its number; 0 for the end of the time.
        text: the message.
    """

    def __init__(self, signal: int, text: str = "interrupted"):
        super().__init__(text)
        self.signal = signal
