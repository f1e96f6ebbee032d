"""What the types of a configuration's fields allow, and how its dataclasses become dicts and are read from them.

A `Literal` is one of its words, a `Range` a number within its bounds; any other number is at least 0.
"""
import dataclasses
import re
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml

from jiidm.system.errors import InputError

_T = typing.TypeVar("_T")


class Range(NamedTuple):
    """The bounds of a number, both included (no `most`: no upper one)."""

    least: float
    most: float | None = None

    def __str__(self):
        return f"at least {self.least:g}" if self.most is None else f"a number from {self.least:g} to {self.most:g}"


Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[int, Range(1)]
ClassCount = Annotated[int, Range(1, 255)]  # label 255 is no class
Enlargement = Annotated[float, Range(1)]


def to_dict(config: Any) -> Any:
    """The dataclass `config` as nested dicts and lists that YAML and JSON can hold."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return [to_dict(item) for item in config] if isinstance(config, tuple) else config


def from_dict(cls: type[_T], data: Any, where: str) -> _T:
    """Builds the dataclass `cls` from nested dicts.

    Args:
        cls: the dataclass.
        data: the values by name; absent ones get their default.
        where: what errors call the source.

    Raises:
        InputError: an unknown key, a value of the wrong type, or a number out of its range.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected keys and values for {cls.__name__}, found {data!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in data:
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}; known here: {', '.join(hints)}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def check_values(section: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, for a field of a dataclass that its type does not allow."""
    for name, kind in typing.get_type_hints(type(section), include_extras=True).items():
        _convert(kind, to_dict(getattr(section, name)), f"{where}{name}")


def _convert(kind, value, where):
    """The value as `kind`, a type of a dataclass's field; `where` names the field."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    origin, bounds = typing.get_origin(kind), None
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, found {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if type(value) is not str:
            raise InputError(f"{where}: expected str, found {value!r}")
        words = [word for word in typing.get_args(kind) if word]
        if value not in typing.get_args(kind):
            raise InputError(f"{where} {value!r}: expected one of {', '.join(words)}")
        return value
    if origin is Annotated:
        kind, bounds = typing.get_args(kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"\d+e[+-]?\d+", value):
        value = float(value)  # YAML 1.1 wants a point before the exponent and takes 1e-4 for text
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    if bounds is not None and not (bounds.least <= value and (bounds.most is None or value <= bounds.most)):
        raise InputError(f"{where} {value:g}: expected {bounds}")
    if kind in (int, float) and not value >= 0:
        raise InputError(f"{where}: expected a number of at least 0, found {value!r}")
    return value


def read_yaml(path: str | Path) -> Any:
    """Reads a YAML file; {} where it is empty. Raises InputError where it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    return {} if data is None else data
