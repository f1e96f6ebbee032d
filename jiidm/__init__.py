"""IIDM in Jittor: from a label map and a style photo to a landscape picture (arXiv 2403.13378)."""
import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Generator", "InputError", "evaluate", "load"]

_HOMES = {
    "Generator": "jiidm.generator",
    "load": "jiidm.generator",
    "evaluate": "jiidm.evaluation.measure",
    "InputError": "jiidm.system.errors",
}


def __getattr__(name: str) -> Any:
    # imported with their first use, so that commands that need no network start at once, without Jittor
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
