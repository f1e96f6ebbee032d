"""What an ONNX file says of itself, read without running or resolving anything in it.

An ONNX file may name other files that hold its tensors, anywhere on the disk. onnxruntime would open them, so a file
is looked through first. The reader knows as much of protobuf and of ONNX's messages as that takes.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jiidm_onnx.errors import InputError

LEAST_OPSET = 17
_DOMAINS = (b"", b"ai.onnx")  # both are ONNX's own operators
# message -> field -> the message in it, for all ways to a tensor (onnx.proto)
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_OPSET, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_DEEPEST = 50  # messages within messages


def check_model(path: Path, data: bytes) -> None:
    """Checks that an ONNX file has an operator set of 17 or later and all its tensors in itself.

    Args:
        path: what errors call the file.
        data: its content.

    Raises:
        InputError: it is another kind of file, too old, or has tensors in other files.
    """
    try:
        opset = max((_read_opset(value) for number, value in _fields(memoryview(data)) if number == _OPSET), default=0)
        outside = _has_external_data(memoryview(data), "model", 0)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path}: not a readable ONNX file ({error}); copy or export it again") from error
    if outside:
        raise InputError(f"{path}: keeps tensors in other files, which are never opened; expected a file of "
                         f"`jiidm export`")
    if opset < LEAST_OPSET:
        raise InputError(f"{path}: operator set {opset}, expected {LEAST_OPSET} or later; export it again")


def _read_opset(message: memoryview) -> int:
    """The version of ONNX's own operators in an OperatorSetIdProto; 0 for those of others."""
    found = dict(_fields(message))
    return found.get(2, 0) if bytes(found.get(1, b"")) in _DOMAINS else 0


def _has_external_data(data: memoryview, message: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("messages too deep within each other")
    for number, value in _fields(data):
        if message == "tensor" and (number == _EXTERNAL_DATA or number == _DATA_LOCATION and value):
            return True
        inner = _MESSAGES[message].get(number)
        if inner and _has_external_data(value, inner, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: (number, value), a whole number or bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
        elif kind in (1, 2, 5):
            length, at = _varint(data, at) if kind == 2 else (8 if kind == 1 else 4, at)
            value, at = data[at:at + length], at + length
        else:
            raise ValueError(f"wire type {kind}")
        if at > len(data):
            raise ValueError("it ends too early")
        yield key >> 3, value


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("a number of more than ten bytes")
