"""Files of weights: safetensors whose metadata hold the whole configuration, so that loading needs no YAML.

The safetensors library checks every header. Values are read from the file itself: numpy has no bfloat16, which the
library therefore cannot return, and a memory-mapped file that is cut off would end the process.
"""
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from jiidm.config import Config, drop_retired, from_dict, to_dict
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole

FORMAT = "jiidm-1"
KINDS = ("autoencoder", "unet")
BFLOAT16 = "bfloat16"  # the one number format of weights that numpy lacks
_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": BFLOAT16, "I64": "<i8", "U64": "<u8", "I32": "<i4", "U32": "<u4",
    "I16": "<i2", "U16": "<u2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1", "C64": "<c8",
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 16 << 20  # bytes; the header of the full-size UNet has 80 thousand
_MAX_DIMENSIONS, _MAX_SIDE = 8, 2**40


@dataclass(frozen=True)
class Source:
    """A file that a checkpoint was made from.

    Args:
        file: its name.
        sha256: of its content.
        step: the training step it was saved at.
        weight: its weight in an average.
    """

    file: str
    sha256: str
    step: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one network and what is known of them.

    Args:
        path: the file.
        kind: which network: "autoencoder", "unet", or a baseline's name.
        config: the whole configuration, a `Config` or a baseline's.
        step: the training step it was saved at.
        tensors: names to arrays, or to `StoredTensor`s from `open_checkpoint`.
        note: how it was made, in words.
        provenance: the files it was made from.
        classes: what it knows of classes, as `Vocabulary.as_dict` gives it. None: it says nothing of them.
    """

    path: Path
    kind: str
    config: Any
    step: int
    tensors: dict[str, Any]
    note: str = ""
    provenance: tuple[Source, ...] = ()
    classes: dict[str, Any] | None = None

    def describe(self) -> str:
        """Returns one line: file, network, step, and what it was made from."""
        made = ", ".join(f"{s.file} (step {s.step}, weight {s.weight:.4g}, sha256 {s.sha256[:12]})"
                         for s in self.provenance)
        parts = [f"{self.path}: {self.kind}, step {self.step}", self.note, made and f"made from {made}"]
        return "; ".join(filter(None, parts))


class Readable(Protocol):
    """Bytes that can be read in parts: a `Span` of a file, or bytes in memory."""

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns `count` bytes from `start` on as a uint8 array."""


@dataclass(frozen=True)
class Span:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns `count` bytes from `start` on as a uint8 array; raises InputError where the file has fewer."""
        try:
            raw = np.fromfile(self.path, np.uint8, count, offset=self.offset + start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if len(raw) != count:
            raise InputError(f"{self.path}: ends before byte {self.offset + start + count}; copy it again")
        return raw


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in its file.

    Whoever creates one ensures that all its elements lie within `data`.

    Args:
        data: the bytes, a `Span` or what reads like one.
        dtype: numpy's name of the number format, or "bfloat16".
        shape: the sides.
        strides: in elements. Element (i, j, ...) is number `start` + i * strides[0] + j * strides[1] ... of `data`.
        start: place of the first element, in elements.
    """

    data: Readable
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes an element."""
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.itemsize * math.prod(self.shape)

    @property
    def dtype_name(self) -> str:
        """The number format without its byte order: float32, bfloat16, int64 and so on."""
        return self.dtype if self.dtype == BFLOAT16 else np.dtype(self.dtype).name

    def read(self) -> np.ndarray:
        """Returns the values as an array; bfloat16 becomes float32."""
        stored = "<u2" if self.dtype == BFLOAT16 else self.dtype
        count = last_element(self.shape, self.strides) + 1
        flat = self.data.read(self.start * self.itemsize, count * self.itemsize).view(stored)
        strides = [s * self.itemsize for s in self.strides]
        array = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        if self.dtype == BFLOAT16:  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the strides, in elements, of an array of this shape in C order without gaps."""
    strides = [1]
    for side in reversed(shape[1:]):
        strides.append(strides[-1] * side)
    return tuple(reversed(strides)) if shape else ()


def last_element(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns the place of the last element, counted from the first; -1 for a tensor without elements."""
    return sum((side - 1) * step for side, step in zip(shape, strides, strict=True)) if 0 not in shape else -1


def source_of(path: str | Path, step: int = 0, weight: float = 1.0) -> Source:
    """Returns the `Source` of a file; reads all of it for its SHA-256.

    Args:
        path: the file.
        step: the training step it was saved at.
        weight: its weight in an average.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return Source(Path(path).name, digest.hexdigest(), step, weight)


# ------------------------------------------------------------------------------------------------------------- writing

def save_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str], dtype: str | None = None,
                 finite: bool = False, checksum: str | None = None) -> None:
    """Writes a safetensors file, one tensor at a time; the file appears whole or not at all.

    Args:
        path: the file.
        tensors: names to arrays, Jittor variables, or `StoredTensor`s, which are read one by one.
        metadata: names to texts.
        dtype: number format of the file, such as "float16". None: each tensor keeps its own.
        finite: refuse NaN, and numbers beyond the range of the format.
        checksum: an entry of the metadata that receives the SHA-256 of the file. It is taken with zeros in its place.

    Raises:
        InputError: the file cannot be written, or a value is refused.
    """
    zeros = "0" * 64
    header: dict[str, Any] = {"__metadata__": {**metadata, **({checksum: zeros} if checksum else {})}}
    formats, end = {}, 0
    for name, value in tensors.items():
        formats[name] = np.dtype(dtype or str(value.dtype)).newbyteorder("<")
        begin, end = end, end + formats[name].itemsize * math.prod(value.shape)
        header[name] = {"dtype": _NAMES[formats[name].str], "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the values are to lie aligned
    text = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(text)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(text)
        for name, value in tensors.items():
            array = _read_values(value, formats[name])
            if finite and not np.isfinite(array).all():
                raise InputError(f"{path}: NaN or a number too large for {formats[name].name} in {name}; not written; "
                                 f"take an earlier checkpoint, or float32")
            file.write(array.data)
            if checksum:
                digest.update(array.data)
        if checksum:
            file.seek(text.index(zeros.encode()))
            file.write(digest.hexdigest().encode())


def _read_values(value: Any, dtype: np.dtype) -> np.ndarray:
    """The values of an array, a variable or a stored tensor, as they are to lie in the file."""
    for read in ("read", "numpy"):
        if hasattr(value, read):
            value = getattr(value, read)()
            break
    with np.errstate(over="ignore"):  # to be found by the check for infinite values
        return np.ascontiguousarray(value, dtype)


def save_checkpoint(path: str | Path, kind: str, tensors: Mapping[str, Any], config: Any, step: int,
                    dtype: str = "float16", note: str = "", provenance: Iterable[Source] = (),
                    classes: Mapping[str, Any] | None = None) -> None:
    """Writes the weights of a network with its configuration.

    Args:
        path: the file; it appears whole or not at all.
        kind: which network, such as "unet".
        tensors: names to arrays, or to `StoredTensor`s, which are read one by one.
        config: the whole configuration.
        step: the training step.
        dtype: "float16" or "float32".
        note: how it was made, in words.
        provenance: the files it was made from.
        classes: what it knows of classes, as `Vocabulary.as_dict` gives it.

    Raises:
        InputError: NaN or a number beyond the range of `dtype`, or the file cannot be written.
    """
    save_tensors(path, tensors, {
        "format": FORMAT, "kind": kind, "config": json.dumps(to_dict(config)), "step": str(step), "note": note,
        "provenance": json.dumps([to_dict(source) for source in provenance]),
        **({"classes": json.dumps(classes)} if classes else {}),
    }, dtype, finite=True)


# ------------------------------------------------------------------------------------------------------------- reading

def open_tensors(path: str | Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Reads the header of a safetensors file.

    Returns:
        Names to `StoredTensor`s, whose values stay in the file; and the metadata.

    Raises:
        InputError: the file is missing or truncated, or its header breaks a rule of the format: each name once, and
            tensors of known number formats that fill the file without gap or overlap.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MAX_HEADER:
                raise ValueError(f"a header of {length} bytes")
            text = file.read(length)
        with safe_open(path, "np") as file:  # checks the header
            metadata = file.metadata() or {}
        header = json.loads(text, object_pairs_hook=_reject_repeated_names)
        header.pop("__metadata__", None)
        return {name: _describe(path, 8 + length, name, **entry) for name, entry in header.items()}, metadata
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable safetensors file ({reason}); copy or save it again") from error


def _reject_repeated_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of an object in a header; the library keeps the last of equal names."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that comes twice")
    return found


def _describe(path: Path, base: int, name: str, dtype: str, shape: list[int], data_offsets: list[int]) -> StoredTensor:
    """The tensor of an entry of a header that the library has checked."""
    if dtype not in _DTYPES:
        raise ValueError(f"{name!a} has the number format {dtype!a}")
    if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) >= _MAX_SIDE:
        raise ValueError(f"{name!a} has more than {_MAX_DIMENSIONS} sides, or a side of {_MAX_SIDE} or more")
    begin, end = data_offsets
    sides = tuple(shape)
    return StoredTensor(Span(path, base + begin, end - begin), _DTYPES[dtype], sides, row_major(sides))


def load_tensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays and the metadata of a safetensors file; raises InputError as `open_tensors`."""
    tensors, metadata = open_tensors(path)
    return {name: tensor.read() for name, tensor in tensors.items()}, metadata


def load_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Reads a checkpoint with all its weights, as float32.

    Args:
        path: the file.
        kind: "autoencoder" or "unet". None: either.

    Raises:
        InputError: the file is missing, damaged or of another program, holds another network, or has NaN.
    """
    stored = open_checkpoint(path, kind)
    for name, tensor in stored.tensors.items():
        stored.tensors[name] = tensor.read().astype(np.float32)
    broken = [name for name, value in stored.tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: NaN or Inf in {_list_names(broken)}; take an earlier checkpoint of the run")
    return stored


def open_checkpoint(path: str | Path, kind: str | None = None) -> Checkpoint:
    """Reads a checkpoint whose weights stay in the file: `StoredTensor`s. Arguments and errors as `load_checkpoint`."""
    tensors, metadata = open_tensors(path)
    checkpoint = checkpoint_of(path, metadata, tensors, KINDS, Config, "an autoencoder or a UNet")
    if kind is not None and checkpoint.kind != kind:
        raise InputError(f"{path}: holds the {checkpoint.kind}, expected the {kind}")
    return checkpoint


def checkpoint_of(path: str | Path, metadata: Mapping[str, str], tensors: dict[str, Any], kinds: Iterable[str],
                  configuration: type, expected: str) -> Checkpoint:
    """Returns the `Checkpoint` of the tensors and metadata of a file.

    Args:
        path: the file, for the messages.
        metadata: as `open_tensors` returns them.
        tensors: names to arrays or `StoredTensor`s.
        kinds: the networks that are allowed.
        configuration: the dataclass of the configuration.
        expected: the `kinds` in words.

    Raises:
        InputError: the file is of another program or holds another network, or its metadata cannot be read.
    """
    found = metadata.get("kind", "")
    if metadata.get("format") != FORMAT or not found.isidentifier():
        raise InputError(f"{path}: not a checkpoint of jiidm (its metadata has no format {FORMAT!r} and kind); "
                         f"`jiidm convert` converts the weights of other programs")
    if found not in kinds:
        raise InputError(f"{path}: holds the {found}, expected {expected}")
    try:
        config, step = json.loads(metadata["config"]), int(metadata["step"])
        sources = json.loads(metadata.get("provenance", "[]"))
        provenance = tuple(from_dict(Source, source, "provenance") for source in sources)
        classes = json.loads(metadata.get("classes", "null"))
    except (KeyError, ValueError, TypeError, RecursionError) as error:  # TypeError: a source without its file
        raise InputError(f"{path}: its metadata lacks a readable config, step, provenance or classes ({error}); "
                         f"save it again") from error
    config = from_dict(configuration, drop_retired(config), f"{path}, config")
    return Checkpoint(Path(path), found, config, step, tensors, metadata.get("note", ""), provenance, classes)


# ----------------------------------------------------------------------------------------------------------- networks

def load_into(module: Any, tensors: Mapping[str, Any], source: str | Path) -> None:
    """Sets the parameters of a network by name.

    Args:
        module: the network.
        tensors: names to arrays, or to what reads them one by one, such as `StoredTensor`s; exactly those of the
            network, in its shapes.
        source: what the message calls them, such as the file's path.

    Raises:
        InputError: lists what is missing, unexpected or mis-shaped; the network is unchanged then.
    """
    from jiidm.system.runtime import jt

    parameters = dict(module.named_parameters())
    faults = {
        "missing": sorted(parameters.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - parameters.keys()),
        "mis-shaped": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(p.shape)}"
            for name, p in parameters.items()
            if name in tensors and tuple(tensors[name].shape) != tuple(p.shape)
        ],
    }
    if any(faults.values()):
        lines = "; ".join(f"{kind}: {_list_names(names)}" for kind, names in faults.items() if names)
        raise InputError(f"{source}: the weights are of another architecture; {lines}")
    for name, parameter in parameters.items():
        parameter.assign(jt.array(_read_values(tensors[name], np.dtype("float32"))))
        parameter.sync()  # computed now, so that no second copy of all weights waits for its turn


def check_numbers(arrays: Mapping[str, np.ndarray], source: object) -> None:
    """Raises InputError, which begins with `source`, for NaN, Inf and negative variances in arrays by name."""
    for name, value in arrays.items():
        if not np.isfinite(value).all() or name.endswith("running_var") and (value < 0).any():
            raise InputError(f"{source}: NaN, Inf or a negative variance in {name}; the weights cannot be used")


def arrays_of(module: Any) -> dict[str, np.ndarray]:
    """Returns the parameters of a network: names to float32 arrays."""
    return {name: parameter.numpy() for name, parameter in module.named_parameters()}


def _list_names(names: list[str], most: int = 8) -> str:
    """The first names in one text, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
