"""Lets autodoc read the package where Jittor is not installed or not compiled, and reads its docstrings as plain text.

`jiidm.system.runtime` is the one module that imports Jittor. A stand-in takes its place: all its names are classes, so
that others can derive from them and use them in annotations.
"""
import re
import sys
import types


class _StandIn(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(name, (), {"__module__": cls.__name__, "__call__": _returns_its_argument})


def _returns_its_argument(self, *args):  # as a decorator's result does
    return args[0] if args else self


def _runtime():
    module = types.ModuleType("jiidm.system.runtime")
    module.__getattr__ = lambda name: getattr(_StandIn("runtime", (), {}), name)
    return module


def plain_text(app, what, name, obj, options, lines):
    """Docstrings are plain text with `code`: what else reStructuredText would read as markup is escaped."""
    parts = re.split(r"`+([^`]+)`+", "\n".join(lines))
    parts[::2] = [re.sub(r"([\\|*`]|(?<=\w)_(?!\w))", r"\\\1", text) for text in parts[::2]]
    parts[1::2] = [f"``{code}``\\ " if after[:1].isalnum() else f"``{code}``"
                   for code, after in zip(parts[1::2], parts[2::2], strict=True)]
    lines[:] = "".join(parts).split("\n")


def skip_aliases(app, what, name, obj, skip, options):
    """Fields of named tuples are described by the tuple's docstring."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app):
    sys.modules["jiidm.system.runtime"] = _runtime()
    app.connect("autodoc-process-docstring", plain_text, priority=400)  # before napoleon's
    app.connect("autodoc-skip-member", skip_aliases)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
