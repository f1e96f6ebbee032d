"""Files of weights as other programs write them, made by hand: neither PyTorch nor Jittor is needed."""
import hashlib
import io
import json
import math
import pickle
import struct
import zipfile
from dataclasses import dataclass

import numpy as np

SAFETENSORS = {"f8": "F64", "f4": "F32", "f2": "F16", "bfloat16": "BF16", "i8": "I64"}
STORAGES = {"f8": "DoubleStorage", "f4": "FloatStorage", "f2": "HalfStorage", "bfloat16": "BFloat16Storage",
            "i8": "LongStorage", "c8": "ComplexFloatStorage"}


# ---- pickles, opcode by opcode

@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass
class Call:
    maker: object
    arguments: object
    state: object = None


@dataclass
class Persistent:
    value: object


@dataclass
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


ORDERED_DICT = Call(Global("collections", "OrderedDict"), ())


def opcodes(value):
    """The opcodes that put a value on the stack, as Python's pickler writes them in protocol 2 and 3."""
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value) if abs(value) < 2**31 else b"\x8a\x10" + value.to_bytes(16, "little",
                                                                                                     signed=True)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(opcodes, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(opcodes(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, Global):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        made = opcodes(value.maker) + opcodes(value.arguments) + b"R"
        return made if value.state is None else made + opcodes(value.state) + b"b"
    return value.opcodes if isinstance(value, Raw) else opcodes(value.value) + b"Q"


def pickled(value):
    """A pickle of protocol 2."""
    return b"\x80\x02" + opcodes(value) + b"."


# ---- PyTorch

def bfloat16(array):
    """The bytes of an array as bfloat16, cut off."""
    return (np.asarray(array, "<f4").view("<u4") >> 16).astype("<u2").tobytes()


def raw(array, dtype, order="<"):
    return bfloat16(array) if dtype == "bfloat16" else np.asarray(array).astype(order + dtype).tobytes()


def tensor(key, shape, dtype="f4", numel=None, start=0, strides=None, extra=()):
    """The call that makes a tensor of PyTorch from the storage `key`."""
    if strides is None:
        strides = tuple(math.prod(shape[i + 1:]) for i in range(len(shape)))
    storage = ("storage", Global("torch", STORAGES[dtype]), key, "cpu", math.prod(shape) if numel is None else numel)
    return Call(Global("torch._utils", "_rebuild_tensor_v2"),
                (Persistent(storage + extra), start, shape, strides, False, ORDERED_DICT))


def zip_file(root, storages, order=b"little", compression=zipfile.ZIP_STORED, more=()):
    """PyTorch's zip archive: the object, the bytes of its storages by key, and further entries (name, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(root))
        archive.writestr("archive/byteorder", order)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
        for name, data in more:
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_zip(arrays, dtype="f4", wrap=lambda tensors: tensors, order="<", **options):
    """PyTorch's zip archive of arrays by name; `wrap` makes the object that is saved from the dict of tensors."""
    tensors = {name: tensor(str(i), a.shape, dtype) for i, (name, a) in enumerate(arrays.items())}
    storages = {str(i): raw(a, dtype, order) for i, a in enumerate(arrays.values())}
    byte_order = b"little" if order == "<" else b"big"
    return zip_file(wrap(tensors), storages, byte_order, **options)


def legacy_file(root, storages, keys=None, protocol=1001, machine=None):
    """PyTorch's older format; `storages`: key to (count, bytes)."""
    machine = {"protocol_version": 1001, "little_endian": True} if machine is None else machine
    head = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, protocol, machine, root,
                                  list(storages) if keys is None else keys)))
    return head + b"".join(struct.pack("<q", count) + data for count, data in storages.values())


def torch_legacy(arrays, dtype="f4", wrap=lambda tensors: tensors):
    """PyTorch's older format of arrays by name."""
    tensors = {name: tensor(str(i), a.shape, dtype, extra=(None,)) for i, (name, a) in enumerate(arrays.items())}
    return legacy_file(wrap(tensors), {str(i): (a.size, raw(a, dtype)) for i, a in enumerate(arrays.values())})


# ---- Jittor, numpy, safetensors

def jittor_file(payload):
    """A pickle with the checksum that Jittor puts behind it."""
    return payload + hashlib.sha1(payload).digest() + b"HCAJSLHD"


def jittor_pickle(arrays, dtype="f4"):
    """What jt.save writes for a dict of numpy arrays."""
    return jittor_file(pickle.dumps({name: a.astype(dtype) for name, a in arrays.items()}, 4))


def safetensors_file(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def safetensors(arrays, dtype="f4"):
    """A safetensors file of arrays by name, without metadata."""
    header, data = {}, b""
    for name, a in arrays.items():
        piece = raw(a, dtype)
        header[name] = {"dtype": SAFETENSORS[dtype], "shape": list(a.shape),
                        "data_offsets": [len(data), len(data) + len(piece)]}
        data += piece
    return safetensors_file(header, data)


# ---- SegFormer

def hugging_face(arrays):
    """A SegFormer's arrays under the names and in the shapes of Hugging Face's files."""
    found = {"decode_head.batch_norm.num_batches_tracked": np.zeros((), "f4")}
    for name, value in arrays.items():
        if name.startswith("encoder."):
            name = f"segformer.{name}"
            for part in ("query", "key", "value", "sr.", "layer_norm."):
                name = name.replace(f".attention.{part}", f".attention.self.{part}")
            name = name.replace(".attention.dense", ".attention.output.dense").replace(".dwconv.", ".dwconv.dwconv.")
        elif ".linear_c." in name:
            stem, number, kind = name.rsplit(".", 2)
            name = f"{stem}.{number}.proj.{kind}"
        elif name in ("decode_head.linear_fuse.weight", "decode_head.classifier.weight"):
            value = value[:, :, None, None]
        found[name] = value
    return found


FORMATS = {
    "zip": torch_zip,
    "older PyTorch": torch_legacy,
    "Jittor": jittor_pickle,
    "pickle 2": lambda arrays: pickle.dumps(arrays, 2),
    "pickle 5": lambda arrays: pickle.dumps(arrays, 5),
    "safetensors": safetensors,
}
