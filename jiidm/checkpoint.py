"""Files of weights: safetensors with the whole configuration in the metadata, so that loading needs no YAML.

Whole files go through the safetensors package. What a network of 2 GB asks for, to be read and written one tensor at a
time, it does not offer for numpy: `open_tensors` and `save_checkpoint` do that themselves.
"""
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

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
_MOST_HEADER = 16 << 20  # bytes; that of the full-size UNet has 80 thousand
_MOST_DIMENSIONS, _MOST_SIDE = 8, 2**40


@dataclass(frozen=True)
class Source:
    """A file that a checkpoint was made from: its name, SHA-256 and step, and its share in a weighted mean."""

    file: str
    sha256: str
    step: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one network: names to arrays (`StoredTensor`s from `open_checkpoint`), what network it is, its
    configuration, the step it was saved at, how it was made, and from which files."""

    path: Path
    kind: str
    config: Config
    step: int
    tensors: dict
    note: str = ""
    provenance: tuple[Source, ...] = ()

    def describe(self):
        """One line: file, network, step, and what it was made from."""
        made = ", ".join(f"{s.file} (step {s.step}, weight {s.weight:.4g}, sha256 {s.sha256[:12]})"
                         for s in self.provenance)
        parts = [f"{self.path}: {self.kind}, step {self.step}", self.note, made and f"made from {made}"]
        return "; ".join(filter(None, parts))


@dataclass(frozen=True)
class Span:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int

    def read(self, start, count):
        """`count` bytes from `start` on, as a uint8 array; raises InputError when the file no longer has them."""
        try:
            raw = np.fromfile(self.path, np.uint8, count, offset=self.offset + start)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        if len(raw) != count:
            raise InputError(f"{self.path}: ends before byte {self.offset + start + count}; copy it again")
        return raw


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that still lies in its file: element (i, j, ...) is number `start` + i * strides[0] + ... of `data`.

    `dtype` is numpy's, or "bfloat16"; `data` is a `Span` or what reads like one. Whoever makes a tensor sees to it that
    all its elements lie within `data`.
    """

    data: Span
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    @property
    def itemsize(self):
        return 2 if self.dtype == BFLOAT16 else np.dtype(self.dtype).itemsize

    @property
    def nbytes(self):
        return self.itemsize * math.prod(self.shape)

    @property
    def dtype_name(self):
        """The number format without its byte order: float32, bfloat16, int64 and so on."""
        return self.dtype if self.dtype == BFLOAT16 else np.dtype(self.dtype).name

    def read(self):
        """The numbers as an array; bfloat16 comes as float32."""
        stored = "<u2" if self.dtype == BFLOAT16 else self.dtype
        count = last_element(self.shape, self.strides) + 1
        flat = self.data.read(self.start * self.itemsize, count * self.itemsize).view(stored)
        strides = [s * self.itemsize for s in self.strides]
        array = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        if self.dtype == BFLOAT16:  # the upper half of a float32
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array


def row_major(shape):
    """The strides, in elements, of an array without gaps, and of one stored in the order of C."""
    strides = [1]
    for side in reversed(shape[1:]):
        strides.append(strides[-1] * side)
    return tuple(reversed(strides)) if shape else ()


def last_element(shape, strides):
    """Place of the last element, counted from the first; -1 for a tensor without any."""
    return sum((side - 1) * step for side, step in zip(shape, strides, strict=True)) if 0 not in shape else -1


def source_of(path, step=0, weight=1.0):
    """The `Source` that says what a file is; reads all of it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return Source(Path(path).name, digest.hexdigest(), step, weight)


def save_checkpoint(path, kind, tensors, config, step, dtype="float16", note="", provenance=()):
    """Writes the tensors of a network of `kind` as float16 or float32, one at a time, and the file whole or not at all.

    tensors: names to arrays, or to anything with a `shape` and a `read()` that gives the array. `note` says how it was
    made, `provenance` from which `Source`s. Raises InputError for NaN and for a number beyond the range of `dtype`:
    the file could not be loaded again.
    """
    header = {"__metadata__": {
        "format": FORMAT, "kind": kind, "config": json.dumps(to_dict(config)), "step": str(step), "note": note,
        "provenance": json.dumps([to_dict(source) for source in provenance]),
    }}
    item, end = np.dtype(dtype).itemsize, 0
    for name, value in tensors.items():
        begin, end = end, end + item * math.prod(value.shape)
        header[name] = {"dtype": f"F{8 * item}", "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the numbers are to lie aligned
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in tensors.items():
            file.write(_numbers(path, name, value, dtype).data)


def _numbers(path, name, value, dtype):
    """A tensor as it is to be stored; raises InputError for what could not be loaded again."""
    value = value.read() if hasattr(value, "read") else value
    with np.errstate(over="ignore"):
        array = np.ascontiguousarray(value, np.dtype(dtype).newbyteorder("<"))
    if not np.isfinite(array).all():
        raise InputError(f"{path}: NaN or a number too large for {dtype} in {name}; not written; take an earlier "
                         f"checkpoint, or float32")
    return array


def save_tensors(path, arrays, metadata):
    """Writes a safetensors file, whole or not at all."""
    with written_whole(path) as temporary:
        try:
            save_file(arrays, temporary, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error


def load_tensors(path):
    """Arrays and metadata of a safetensors file; raises InputError when it is missing, truncated or of another kind."""
    path = _checkpoint_file(path)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type that numpy lacks, such as bfloat16
        raise _unreadable(path, error) from error


def open_tensors(path):
    """`StoredTensor`s by name, and metadata, of a safetensors file, of which only the header is read.

    Raises InputError when it is missing or truncated, or when its header breaks the rules of the format: each name
    once, tensors that fill the file without gap or overlap, in number formats that are known here.
    """
    path = _checkpoint_file(path)
    try:
        with open(path, "rb") as file:
            length, size = int.from_bytes(file.read(8), "little"), path.stat().st_size
            if not 2 <= length <= min(size - 8, _MOST_HEADER):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length).decode(), object_pairs_hook=_each_once)
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("metadata that is not text")
        tensors = {name: _stored(path, 8 + length, name, entry) for name, entry in header.items()}
        end = 8 + length
        for tensor in sorted(tensors.values(), key=lambda t: (t.data.offset, t.data.length)):
            if tensor.data.offset != end:
                raise ValueError("tensors that overlap or leave gaps")
            end += tensor.data.length
        if end != size:
            raise ValueError(f"tensors that end at byte {end} of {size}")
    except (OSError, ValueError, AttributeError, RecursionError) as error:  # AttributeError: no dict where one belongs
        raise _unreadable(path, error) from error
    return tensors, metadata


def _each_once(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name that comes twice")
    return found


def _stored(path, base, name, entry):
    """The tensor that an entry of the header describes; raises ValueError where it contradicts itself."""
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"{name!a} has the number format {dtype!a}")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if len(numbers) > _MOST_DIMENSIONS + 2 or not all(type(n) is int and 0 <= n < _MOST_SIDE for n in numbers):
        raise ValueError(f"{name!a} has no readable shape and place")
    begin, end = offsets
    tensor = StoredTensor(Span(path, base + begin, end - begin), _DTYPES[dtype], tuple(shape), row_major(shape))
    if tensor.nbytes != end - begin:
        raise ValueError(f"{name!a} of shape {tuple(shape)} has {end - begin} bytes")
    return tensor


def _checkpoint_file(path):
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    return path


def _unreadable(path, error):
    text = " ".join(str(error).split())
    return InputError(f"{path}: not a readable safetensors file ({text}); copy or save it again")


def load_checkpoint(path, kind=None):
    """Reads a `Checkpoint`; raises InputError for a foreign file, another `kind` of network, or NaN in the weights."""
    tensors, metadata = load_tensors(path)
    checkpoint = _checkpoint(path, metadata, kind, {name: v.astype(np.float32) for name, v in tensors.items()})
    broken = [name for name, value in checkpoint.tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: NaN or Inf in {_listed(broken)}; take an earlier checkpoint of the run")
    return checkpoint


def open_checkpoint(path, kind=None):
    """As `load_checkpoint`, but for the numbers, which stay in the file: the tensors are `StoredTensor`s."""
    tensors, metadata = open_tensors(path)
    return _checkpoint(path, metadata, kind, tensors)


def _checkpoint(path, metadata, kind, tensors):
    checkpoint = checkpoint_of(path, metadata, tensors, KINDS, Config, "an autoencoder or a UNet")
    if kind is not None and checkpoint.kind != kind:
        raise InputError(f"{path}: holds the {checkpoint.kind}, expected the {kind}")
    return checkpoint


def checkpoint_of(path, metadata, tensors, kinds, configuration, expected):
    """The `Checkpoint` of the tensors and metadata of a file, its config of the dataclass `configuration`; raises
    InputError for a foreign file, and for a network that is none of the `kinds`, which are `expected`, in words."""
    found = metadata.get("kind", "")
    if metadata.get("format") != FORMAT or not found.isidentifier():
        raise InputError(f"{path}: not a checkpoint of jiidm (its metadata has no format {FORMAT!r} and kind); "
                         f"tools/convert.py converts weights of other makes")
    if found not in kinds:
        raise InputError(f"{path}: holds the {found}, expected {expected}")
    try:
        config, step = json.loads(metadata["config"]), int(metadata["step"])
        sources = json.loads(metadata.get("provenance", "[]"))
        provenance = tuple(from_dict(Source, source, "provenance") for source in sources)
    except (KeyError, ValueError, TypeError, RecursionError) as error:  # TypeError: a source without its file
        raise InputError(f"{path}: its metadata lacks a readable config, step or provenance ({error}); save it again"
                         ) from error
    config = from_dict(configuration, drop_retired(config), f"{path}, config")
    return Checkpoint(Path(path), found, config, step, tensors, metadata.get("note", ""), provenance)


def load_into(module, tensors, source):
    """Sets the parameters of `module` from arrays by name; raises InputError that lists what is missing, extra or
    mis-shaped, and changes nothing then."""
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
        lines = "; ".join(f"{kind}: {_listed(names)}" for kind, names in faults.items() if names)
        raise InputError(f"{source}: the weights are of another architecture; {lines}")
    for name, parameter in parameters.items():
        parameter.assign(jt.array(np.ascontiguousarray(tensors[name], "float32")))


def arrays_of(module):
    """The parameters of a module as names to float32 arrays."""
    return {name: parameter.numpy() for name, parameter in module.named_parameters()}


def _listed(names, most=8):
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
