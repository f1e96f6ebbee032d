"""IIDM in Jittor: from a label map and a style photo to a landscape picture (arXiv 2403.13378)."""

__version__ = "0.1.0"
__all__ = ["Generator", "InputError"]


def __getattr__(name):
    # Jittor is imported with the first use of Generator, so that tools that need no network start at once
    if name == "Generator":
        from jiidm.generator import Generator

        return Generator
    if name == "InputError":
        from jiidm.system.errors import InputError

        return InputError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
