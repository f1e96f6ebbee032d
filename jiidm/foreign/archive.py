"""Opens files of weights: PyTorch's zip archives and older format, pickles of Jittor and numpy, and safetensors.

The content decides what format a file has, not its name.
"""
import hashlib
import io
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jiidm.checkpoint import BFLOAT16, FORMAT, Span, open_tensors
from jiidm.foreign.builders import BUILDERS, STORAGES, Array, Storage, Tensor, inert
from jiidm.foreign.unpickle import Name, Unpickler, quote
from jiidm.system.errors import InputError

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of an entry of a zip archive: magic, lengths of name and extra field
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_JITTOR_MAGIC, _JITTOR_TRAILER = b"HCAJSLHD", 28  # SHA-1 of the pickle, then the magic
_MAX_DIRECTORY = 4 << 20  # bytes; an archive of the full-size networks with their averages has 300 thousand
_MAX_TENSORS, _MAX_DEPTH, _MAX_NAME = 100_000, 6, 500


@dataclass(frozen=True)
class Weights:
    """What a file holds.

    Args:
        path: the file.
        format: in words.
        tensors: `StoredTensor`s by name.
        step: the training step that the file names, if any.
        native: whether it is a checkpoint of jiidm.
    """

    path: Path
    format: str
    tensors: dict
    step: int | None = None
    native: bool = False

    def array(self, name: str, shape: tuple[int, ...], expected: str) -> np.ndarray:
        """Returns the tensor `name` as float32; raises InputError unless it is there, has this shape and no NaN or Inf.

        `expected` is what the file should be, for the message.
        """
        stored = self.tensors.get(name)
        if stored is None or tuple(stored.shape) != shape:
            found = "is missing" if stored is None else f"has the shape {tuple(stored.shape)}"
            raise InputError(f"{self.path}: {name} {found}; expected {expected}, where its shape is {shape}")
        values = np.asarray(stored.read(), np.float32)
        if not np.isfinite(values).all():
            raise InputError(f"{self.path}: {name} holds NaN or infinity; use another copy of the file")
        return values


def open_weights(path: str | Path) -> Weights:
    """Finds the tensors in a file of weights; their values stay in it until they are read.

    Args:
        path: a .pt, .pth, .ckpt, .pkl or .safetensors file.

    Returns:
        The `Weights`.

    Raises:
        InputError: the file is missing, damaged or of another format, or holds more than tensors and containers.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; expected a file of weights")
    try:
        with open(path, "rb") as file:
            start, size = file.read(512), path.stat().st_size
            file.seek(0)
            return _read_any(path, file, start, size)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_any(path, file, start, size):
    """The `Weights` of a file of any known format."""
    if start[:4] == b"PK\x03\x04":
        return _collect_tensors(path, "PyTorch's zip format", _read_zip(path, file))
    if start[:1] == b"\x80":
        return _collect_tensors(path, *_read_pickle(path, file, size))
    if start[8:9] == b"{":
        tensors, metadata = open_tensors(path)
        return Weights(path, "safetensors", tensors, None, metadata.get("format") == FORMAT)
    what = "of no format known here" if start else "empty"
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, the weights themselves have to be fetched"
    raise InputError(f"{path}: {what}; expected PyTorch's .pt, .pth or .ckpt, Jittor's .pkl (pickle protocol 2 or "
                     f"later), or safetensors")


def _collect_tensors(path, what, root):
    """The `Weights` of the object that a file holds."""
    if not isinstance(root, dict):
        raise InputError(f"{path}: holds a {type(root).__name__}, expected a dictionary of names and tensors")
    tensors = {}
    for name, value in _walk(path, root):
        if name in tensors:
            raise InputError(f"{path}: two tensors have the name {quote(name)}")
        try:
            tensors[name] = value.stored()
        except ValueError as error:
            raise InputError(f"{path}: {quote(name)}: {error}; do not use the file") from error
    if not tensors:
        raise InputError(f"{path}: holds no tensors")
    steps = [root.get(key) for key in ("global_step", "step")]
    return Weights(path, what, tensors, next((s for s in steps if type(s) is int and s >= 0), None))


def _walk(path, root):
    """Yields names and tensors of nested dicts; a dot stands between the keys."""
    waiting, seen = [("", root, 0)], 0
    while waiting:
        prefix, branch, depth = waiting.pop()
        for key, value in branch.items():
            seen += 1
            if seen > _MAX_TENSORS:
                raise InputError(f"{path}: more than {_MAX_TENSORS} entries, too many for a file of weights")
            if not isinstance(key, str) or not isinstance(value, dict | Tensor | Array):
                continue
            name = f"{prefix}{key}"
            if len(name) > _MAX_NAME:
                raise InputError(f"{path}: a name of {len(name)} characters, {quote(name)}")
            if isinstance(value, dict):
                if depth < _MAX_DEPTH:
                    waiting.append((f"{name}.", value, depth + 1))
            else:
                yield name, value


def _unpickle(path, file, end, persistent=None):
    """The object of the pickle at the file's position, which ends before byte `end`."""
    return Unpickler(path, file, end, BUILDERS, inert, persistent).load()


# ---- pickles: Jittor, numpy, and PyTorch's older format

def _read_pickle(path, file, size):
    """The format of a file that begins with a pickle, and the object in it."""
    end = size
    if size > _JITTOR_TRAILER:
        file.seek(size - _JITTOR_TRAILER)
        trailer = file.read(_JITTOR_TRAILER)
        if trailer.endswith(_JITTOR_MAGIC):
            end = size - _JITTOR_TRAILER
            if _sha1(file, end) != trailer[:20]:
                raise InputError(f"{path}: its checksum is not that of its content; copy it again")
    file.seek(0)
    root = _unpickle(path, file, end)
    if type(root) is int and root == _LEGACY_MAGIC:
        return "PyTorch's older format", _read_legacy(path, file, size)
    if file.tell() != end:
        raise InputError(f"{path}: {end - file.tell()} bytes too many behind its pickle; copy it again")
    return "Jittor's pickle" if end < size else "a pickle", root


def _sha1(file, end):
    """The SHA-1 of the first `end` bytes."""
    digest = hashlib.sha1()
    file.seek(0)
    while block := file.read(min(1 << 20, end - file.tell())):
        digest.update(block)
    return digest.digest()


def _read_legacy(path, file, size):
    """The object of PyTorch's older format.

    After the magic number come pickles of version, machine, object and storage keys, then the size and the values of
    each storage.
    """
    version, machine = (_unpickle(path, file, size) for _ in range(2))
    if version != _LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise InputError(f"{path}: PyTorch's older format, but not of version {_LEGACY_PROTOCOL}, little-endian")
    storages = {}

    def persistent(identity):
        dtype, key, numel, *view = _parse_identity(identity)
        if view not in ([], [None]):
            raise ValueError("a view of a storage, which is not known here")
        if key not in storages:
            storages[key] = Storage(_ordered(dtype, "<"), numel)
        if (storages[key].dtype, storages[key].numel) != (_ordered(dtype, "<"), numel):
            raise ValueError("a storage with two number formats or sizes")
        return storages[key]

    root, keys = _unpickle(path, file, size, persistent), _unpickle(path, file, size)
    for key in keys if isinstance(keys, list) else [None]:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or storage.data is not None:
            raise InputError(f"{path}: its list of storages does not fit its tensors")
        count = int.from_bytes(file.read(8), "little")
        start, length = file.tell(), count * _itemsize(storage.dtype)
        if count != storage.numel or start + length > size:
            raise InputError(f"{path}: a storage of {count} numbers, expected {storage.numel}, or the file's end is "
                             f"missing; copy it again")
        storage.data = Span(path, start, length)
        file.seek(start + length)
    if file.tell() != size:
        raise InputError(f"{path}: {size - file.tell()} bytes too many behind its storages; copy it again")
    return root


def _parse_identity(identity):
    """Number format, key, size and the rest of a storage's persistent id; raises ValueError for anything else."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise ValueError("a reference that is not to a storage")
    _, kind, key, _, numel, *more = identity
    dtype = STORAGES.get(kind.name) if isinstance(kind, Name) else None
    if dtype is None or type(key) not in (str, int) or type(numel) is not int or not 0 <= numel < 2**40:
        raise ValueError("a storage of an unknown number format, name or size")
    return dtype, str(key), numel, *more


def _ordered(dtype, byte_order):
    """A number format with its byte order."""
    return dtype if dtype == BFLOAT16 else np.dtype(byte_order + dtype).str


def _itemsize(dtype):
    """Bytes a number."""
    return 2 if dtype == BFLOAT16 else np.dtype(dtype).itemsize


# ---- zip archives of PyTorch

class _LimitedReader(io.BufferedReader):
    """A file that never reads more at once than the directory of a real archive has."""

    def read(self, size=-1):
        """Reads up to `size` bytes; raises BadZipFile for more than the limit."""
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def _list_entries(path):
    """The entries of a zip archive, `Span`s by name; raises InputError for any that is not plainly stored."""
    try:
        with _LimitedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            entries, size = {}, path.stat().st_size
            for entry in archive.infolist():
                name = entry.filename
                if name.startswith("/") or "\\" in name or ".." in name.split("/") or ":" in name:
                    raise InputError(f"{path}: has an entry {quote(name)} that points outside of the archive")
                if name in entries:
                    raise InputError(f"{path}: has two entries {quote(name)}")
                if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
                    raise InputError(f"{path}: entry {quote(name)} is compressed, which PyTorch never does; unpack it "
                                     f"with a tool you trust and save the weights again")
                file.seek(entry.header_offset)
                head = file.read(_LOCAL_HEADER.size)
                magic, names, extra = _LOCAL_HEADER.unpack(head)
                start = entry.header_offset + _LOCAL_HEADER.size + names + extra
                if magic != b"PK\x03\x04" or entry.flag_bits & 1 or start + entry.file_size > size:
                    raise InputError(f"{path}: entry {quote(name)} is damaged or encrypted; copy the file again")
                entries[name] = Span(path, start, entry.file_size)
            return entries
    except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError) as error:
        if isinstance(error, InputError):
            raise
        text = " ".join(str(error).split())
        raise InputError(f"{path}: a broken zip archive ({quote(text)}); copy it again") from error


def _read_zip(path, file):
    """The object in PyTorch's zip archive: a folder with `data.pkl`, `byteorder` and `data/KEY`."""
    entries = _list_entries(path)
    roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise InputError(f"{path}: a zip archive with {len(roots)} data.pkl; expected one that torch.save has written")
    order = entries.get(f"{roots[0]}byteorder")
    order = "little" if order is None else order.read(0, min(order.length, 8)).tobytes().decode("latin-1")
    if order not in ("little", "big"):
        raise InputError(f"{path}: byte order {quote(order)}, expected little or big")

    def persistent(identity):
        dtype, key, numel, *more = _parse_identity(identity)
        data = entries.get(f"{roots[0]}data/{key}")
        dtype = _ordered(dtype, "<" if order == "little" else ">")
        if dtype == BFLOAT16 and order == "big":
            raise ValueError("bfloat16 in big-endian order, which is not known here")
        if more or data is None or numel * _itemsize(dtype) > data.length:
            raise ValueError(f"a storage {quote(key)} of {numel} numbers that the archive does not have")
        return Storage(dtype, numel, data)

    pickle = entries[f"{roots[0]}data.pkl"]
    file.seek(pickle.offset)
    return _unpickle(path, file, pickle.offset + pickle.length, persistent)
