"""Files that are damaged, or made to do harm: what `test_foreign_hostile.py` has refused. Nothing here does real harm:
what would be run touches a file in the current folder.
"""
import json
import pickle
import struct
import zipfile

import foreign_files as made
import numpy as np
from foreign_files import Call, Global, Persistent, Raw, pickled, tensor

from jiidm.config import AutoencoderConfig
from jiidm.foreign.architecture import expected_shapes

SECTION = AutoencoderConfig(ch=4, ch_mult=(1,), num_res_blocks=1, z_channels=2, embed_dim=2, n_embed=3, norm_groups=2)
ARRAYS = {name: np.full(shape, 0.5, "float32") for name, shape in expected_shapes("autoencoder", SECTION).items()}
LAST = "post_quant_conv.bias"  # of two numbers
MARK = "it was run"


def zip_with(**options):
    """A good file but for `extra`, an object beside the tensors; `last`, in place of the tensor LAST; or others."""
    extra, last, storages = options.pop("extra", None), options.pop("last", None), options.pop("storages", {})
    tensors = {name: tensor(str(i), a.shape) for i, (name, a) in enumerate(ARRAYS.items())}
    tensors.update({LAST: last} if last is not None else {})
    root = {"state_dict": tensors, **({"extra": extra} if extra is not None else {})}
    data = {str(i): made.raw(a, "f4") for i, a in enumerate(ARRAYS.values())}
    return made.zip_file(root, {**data, **storages}, **options)


def numpy_array(shape, kind="f4", data=bytes(8), order="<"):
    """The call that makes numpy's array, as numpy pickles it."""
    dtype = Call(Global("numpy", "dtype"), (kind, False, True), (3, order, None, None, None, -1, -1, 0))
    empty = (Global("numpy", "ndarray"), (0,), b"b")
    return Call(Global("numpy.core.multiarray", "_reconstruct"), empty, (1, shape, dtype, False, data))


def stack_global(module, name, *arguments):
    """A call by the opcodes of protocol 4."""
    return Raw(made.opcodes(module) + made.opcodes(name) + b"\x93" + made.opcodes(tuple(arguments)) + b"R")


def text(length, opcode=b"X"):
    return Raw(opcode + struct.pack("<I" if opcode == b"X" else "<Q", length) + b"abc")


TOUCH = f"touch '{MARK}'"
OPEN = f"open({MARK!r}, 'w')"
SYSTEM = Call(Global("os", "system"), (TOUCH,))
CALLS = {
    "os.system": SYSTEM,
    "posix.system": Call(Global("posix", "system"), (TOUCH,)),
    "os.system by stack": stack_global("os", "system", TOUCH),
    "subprocess.Popen": Call(Global("subprocess", "Popen"), (["touch", MARK],)),
    "builtins.eval": Call(Global("builtins", "eval"), (OPEN,)),
    "__builtin__.eval": Call(Global("__builtin__", "eval"), (OPEN,)),
    "builtins.exec": Call(Global("builtins", "exec"), (OPEN,)),
    "builtins.open": Call(Global("builtins", "open"), (MARK, "w")),
    "builtins.getattr": Call(Call(Global("builtins", "getattr"), (Global("os", "path"), "system")), (TOUCH,)),
    "nested": Call(Call(Global("functools", "partial"), (Global("os", "system"),)), (TOUCH,)),
    "inside a tensor": tensor(Call(Global("os", "system"), (TOUCH,)), (2,)),
    "attribute of an allowed class": stack_global("collections", "OrderedDict.__init__.__globals__", TOUCH),
    "module of an allowed name": stack_global("torch._utils._rebuild_tensor_v2", "__globals__", TOUCH),
    "name with a newline": stack_global("os\nsystem", "\x1b[2Jsystem", TOUCH),
    "torch.load": Call(Global("torch", "load"), (MARK,)),
    "torch.storage._load_from_bytes": Call(Global("torch.storage", "_load_from_bytes"), (pickled(SYSTEM),)),
    "pickle.loads": Call(Global("_pickle", "loads"), (pickled(SYSTEM),)),
    "jittor.load": Call(Global("jittor", "load"), (MARK,)),
    "copyreg._reconstructor": Call(Global("copyreg", "_reconstructor"), (Global("builtins", "list"), None, None)),
    "numpy.load": Call(Global("numpy", "load"), (MARK,)),
    "a whole module": Call(Global("torch.nn.modules.linear", "Linear"), (), {"weight": None}),
    "a result called": Call(Call(Global("collections", "OrderedDict"), ()), (TOUCH,)),
    "a text called": Call("os.system", (TOUCH,)),
    "arguments that are no tuple": Call(Global("collections", "OrderedDict"), [TOUCH]),
    "an ordered dict of arguments": Call(Global("collections", "OrderedDict"), ([("a", SYSTEM.maker)],)),
    "another codec": Call(Global("_codecs", "encode"), ("a", "rot13")),
    "attributes of a class": Raw(made.opcodes(Global("collections", "OrderedDict")) + made.opcodes({"get": 1}) + b"b"),
    "attributes of a builder": Raw(made.opcodes(Global("torch._utils", "_rebuild_tensor_v2"))
                                   + made.opcodes((None, {"__code__": 1})) + b"b"),
    "attributes of a tensor": Raw(made.opcodes(tensor("0", (1,))) + made.opcodes({"__setstate__": 1}) + b"b"),
    "attributes of a storage": Raw(made.opcodes(tensor("0", (1,)).arguments[0]) + made.opcodes({"data": 1}) + b"b"),
    "attributes of an array": Call(numpy_array((2,)), (), (None, {"__class__": 1})),
    "items of a tensor": Raw(made.opcodes(tensor("0", (1,))) + b"K\x01K\x02s"),
    "items of a tuple": Raw(b")K\x01a"),
    "INST": Raw(b"(" + made.opcodes(TOUCH) + b"ios\nsystem\n"),
    "OBJ": Raw(b"(" + made.opcodes(Global("os", "system")) + made.opcodes(TOUCH) + b"o"),
    "NEWOBJ": Raw(made.opcodes(Global("os", "system")) + made.opcodes((TOUCH,)) + b"\x81"),
    "NEWOBJ_EX": Raw(made.opcodes(Global("collections", "OrderedDict")) + b")" + made.opcodes({"a": 1}) + b"\x92"),
    "EXT1": Raw(b"\x82\xf0" + made.opcodes((TOUCH,)) + b"R"),
    "EXT2": Raw(b"\x83\xf0\x00" + made.opcodes((TOUCH,)) + b"R"),
    "EXT4": Raw(b"\x84\xf0\x00\x00\x00" + made.opcodes((TOUCH,)) + b"R"),
    "PERSID": Raw(b"Pstorage\n"),
    "a persistent id that is a call": Persistent(SYSTEM),
    "a persistent id of another kind": Persistent(("module", Global("os", "system"), "0", "cpu", 1)),
    "an out-of-band buffer": Raw(b"\x97"),
}


def tuples_of_themselves(depth):
    """A tuple of two of a tuple of two, and so on: short to write, endless to hash or to print."""
    return Raw(b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(depth)))


BOMBS = {
    "tuples as a key": {"a": Raw(b"}" + made.opcodes(tuples_of_themselves(100)) + b"K\x01s")},
    "tuples as a shape": {LAST: Call(tensor("0", ()).maker, (1, 0, tuples_of_themselves(100), (), 0, 0))},
    "tuples in a set": {"a": Raw(b"\x8f(" + made.opcodes(tuples_of_themselves(100)) + b"\x90")},
    "dicts of dicts": {"a": Raw(b"}" + b"".join(
        b"\x94}" + b"".join(made.opcodes(str(k)) + b"h" + bytes([i]) + b"s" for k in range(9)) for i in range(60)))},
    "a dict in itself": {"a": Raw(b"}\x94" + made.opcodes("b") + b"h\x00s")},
    "long names": {str(i).zfill(60000): {str(i).zfill(60000): numpy_array((2,)) for i in range(9)} for i in range(9)},
    "many texts": ["x" * 60000] * 150,
    "many lists": Raw(b"]" * 1_100_000),
    "many memos": Raw(b"]\x94" * 600_000),
    "a number of 2 GB": Raw(b"\x8b" + struct.pack("<i", 2**31 - 1)),
    "a number of 200 bytes": Raw(b"\x8a\xc8" + b"\x7f" * 200),
    "a text of 4 GB": text(2**32 - 1),
    "a text of 10 GB": text(10 * 2**30, b"\x8d"),
    "bytes of 10 GB": text(10 * 2**30, b"\x8e"),
    "a byte array of 2**64": text(2**64 - 1, b"\x96"),
    "a memo of 4 G": Raw(b"]r\xff\xff\xff\xffj\x00\x00\x00\x00"),
    "texts encoded again and again": Raw(made.opcodes("x" * 60000) + b"\x94" + (
        b"c_codecs\nencode\n" + b"h\x00" + made.opcodes("latin1") + b"\x86R") * 20000),
    "big whole numbers as keys": {2**70: 1},
    "a protocol of the future": Raw(b"\x80\x09"),
}

ARRAY_FAULTS = {
    "objects": numpy_array((2,), "O8"),
    "texts": numpy_array((2,), "U1"),
    "records": Call(Global("numpy", "dtype"), ("V8", False, True), (3, "|", None, ("f",), {}, 8, 1, 0)),
    "too few bytes": numpy_array((3,)),
    "too many bytes": numpy_array((1,)),
    "10 GB": numpy_array((2500 * 2**20,)),
    "a negative side": numpy_array((-2,)),
    "a side that is true": numpy_array((True, 2)),
    "nine dimensions": numpy_array((1,) * 8 + (2,)),
    "a shape that is a text": numpy_array("ab"),
    "no state": Call(Global("numpy.core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b")),
    "a list of numbers": numpy_array((2,), data=[1, 2]),
    "a format that is a tensor": Call(numpy_array((2,)), (), (1, (2,), ARRAYS["quant_conv.bias"].tolist(), False, b"")),
    "an unknown byte order": numpy_array((2,), order="middle"),
    "NaN": numpy_array((2,), data=np.float32([0, np.nan]).tobytes()),
    "Inf": numpy_array((2,), data=np.float32([0, -np.inf]).tobytes()),
    "int64": numpy_array((2,), "i8", bytes(16)),
    "complex": numpy_array((2,), "c8", bytes(16)),
    "beyond float32": numpy_array((2,), "f8", np.float64([1e39, 0]).tobytes()),
    "characters that are no bytes": numpy_array((2,), data=Call(Global("_codecs", "encode"), ("\u4e00" * 8, "latin1"))),
    "too few characters": numpy_array((2,), data=Call(Global("_codecs", "encode"), ("abc", "latin1"))),
}

VIEW_FAULTS = {
    "beyond its storage": tensor("0", (2,), numel=1),
    "beyond its storage by its start": tensor("0", (2,), numel=108, start=107),
    "beyond its storage by strides": tensor("0", (2,), numel=108, strides=(108,)),
    "10 GB": tensor("0", (2500 * 2**20,), numel=108),
    "10 GB in one number": tensor("0", (2500 * 2**20,), numel=108, strides=(0,)),
    "2**63 numbers": tensor("0", (2**21, 2**21, 2**21), numel=108),
    "a negative stride": tensor("0", (2,), numel=108, strides=(-1,)),
    "a negative start": tensor("0", (2,), numel=108, start=-1),
    "a negative side": tensor("0", (-2,), numel=108),
    "a side that is a text": tensor("0", ("2",), numel=108, strides=(1,)),
    "a side that is a fraction": tensor("0", (2.0,), numel=108, strides=(1,)),
    "a start that is true": tensor("0", (2,), numel=108, start=True),
    "strides for another shape": tensor("0", (2,), numel=108, strides=(1, 1)),
    "a shape that is nothing": Call(tensor("0", ()).maker, (tensor("0", ()).arguments[0], 0, None, None)),
    "a storage that is a text": Call(tensor("0", ()).maker, ("storage", 0, (2,), (1,))),
    "a storage larger than its entry": tensor("0", (2,), numel=109),
    "a storage of -1": tensor("0", (2,), numel=-1),
    "a storage of 2**62": tensor("0", (2,), numel=2**62),
    "a storage outside of the archive": tensor("../../../etc/passwd", (2,)),
    "a storage without an entry": tensor("none", (2,)),
    "an unknown number format": Call(tensor("0", ()).maker, (
        Persistent(("storage", Global("torch", "QInt8Storage"), "0", "cpu", 2)), 0, (2,), (1,))),
    "int64": tensor("x", (2,), "i8"),
    "complex": tensor("x", (2,), "c8"),
    "NaN in bfloat16": tensor("x", (2,), "bfloat16"),
}


def safetensors_with(change, data=None):
    """A safetensors file of ARRAYS whose header `change` has spoilt."""
    content = made.safetensors(ARRAYS)
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:8 + length])
    header = change(header) or header
    return made.safetensors_file(header, content[8 + length:] if data is None else data)


def entry(**changes):
    return lambda header: header[LAST].update(changes)


def last_offsets(begin, end):
    size = sum(a.nbytes for a in ARRAYS.values())
    return entry(data_offsets=[size + begin, size + end])


SAFETENSORS = {
    "overlapping": safetensors_with(entry(data_offsets=[0, 8])),
    "out of range": safetensors_with(last_offsets(0, 8)),
    "a gap": safetensors_with(last_offsets(0, 8), bytes(sum(a.nbytes for a in ARRAYS.values()) + 8)),
    "backwards": safetensors_with(last_offsets(0, -8)),
    "negative": safetensors_with(entry(data_offsets=[-8, 0])),
    "huge offsets": safetensors_with(entry(data_offsets=[0, 2**64])),
    "10 GB": safetensors_with(entry(shape=[2500 * 2**20])),
    "huge shape": safetensors_with(entry(shape=[2**39] * 8)),
    "many dimensions": safetensors_with(entry(shape=[1] * 100_000)),
    "negative shape": safetensors_with(entry(shape=[-2])),
    "fraction": safetensors_with(entry(shape=[2.0])),
    "infinity": safetensors_with(entry(shape=[float("inf")])),
    "true": safetensors_with(entry(shape=[True, 2])),
    "a text for a shape": safetensors_with(entry(shape="22")),
    "unknown format": safetensors_with(entry(dtype="F8_E5M2")),
    "a list for a format": safetensors_with(entry(dtype=["F32"])),
    "int64": safetensors_with(entry(dtype="I64", shape=[1])),
    "no shape": safetensors_with(lambda header: header[LAST].pop("shape") and None),
    "a list for a tensor": safetensors_with(lambda header: header.update({LAST: [1]})),
    "metadata of numbers": safetensors_with(lambda header: header.update({"__metadata__": {"step": 1}})),
    "metadata that is a list": safetensors_with(lambda header: header.update({"__metadata__": ["step"]})),
    "twice": safetensors_with(lambda h: f'{json.dumps(h)[:-1]}, "{LAST}": {json.dumps(h[LAST])}}}'.encode()),
    "a list for a header": made.safetensors_file(b"{" + b"[" * 50_000),
    "deep": made.safetensors_file(b'{"a":' * 50_000),
    "long number": made.safetensors_file(b'{"a": ' + b"1" * 50_000 + b"}"),
    "no text": made.safetensors_file(b"{\xff\xfe}"),
    "header of 2**63": struct.pack("<Q", 2**63) + b"{}" + bytes(100),
    "header longer than the file": struct.pack("<Q", 200) + b"{}" + bytes(100),
    "NaN": made.safetensors({**ARRAYS, LAST: np.float32([np.nan, 0])}),
    "trailing bytes": made.safetensors(ARRAYS) + b"\0",
}


def zip_bytes(edit):
    """A good archive after `edit`, a function of its bytes as a bytearray."""
    content = bytearray(zip_with())
    edit(content)
    return bytes(content)


def set_in_directory(name, offset, value):
    """Sets bytes of the central directory's entry of `name`."""
    def edit(content):
        place = content.rindex(b"PK\x01\x02", 0, content.rindex(name))
        content[place + offset:place + offset + len(value)] = value
    return zip_bytes(edit)


LEGACY = {"0": (2, made.raw([1, 2], "f4"))}
LEGACY_ROOT = {"a": tensor("0", (2,), extra=(None,))}
FILES = {
    "a bomb in a zip": made.zip_file({}, {"0": bytes(200 * 2**20)}, compression=zipfile.ZIP_DEFLATED),
    "compressed": zip_with(compression=zipfile.ZIP_DEFLATED),
    **{f"entry {name}": zip_with(more=[(name, b"x")]) for name in (
        "../../outside", "/absolute", "archive/../../outside", "..\\outside", "C:outside", "..")},
    "an entry twice": zip_with(more=[("archive/data/X", bytes(432))]).replace(b"archive/data/X", b"archive/data/0"),
    "two pickles": zip_with(more=[("other/data.pkl", pickled({}))]),
    "no pickle": made.zip_file({}, {}).replace(b"data.pkl", b"data.bin"),
    "no archive of PyTorch": made.zip_file({}, {}).replace(b"data.pkl", b"word.xml"),
    "unknown byte order": zip_with(order=b"middle"),
    "bfloat16 in big-endian order": zip_with(order=b"big", last=tensor("x", (2,), "bfloat16"),
                                             storages={"x": bytes(4)}),
    "encrypted": set_in_directory(b"archive/data/0", 8, b"\x01\x00"),
    "an entry beyond the file": set_in_directory(b"archive/data/0", 20, struct.pack("<II", 2**31, 2**31)),
    "an entry that begins beyond the file": set_in_directory(b"archive/data/0", 42, struct.pack("<I", 2**31)),
    "an entry that begins elsewhere": set_in_directory(b"archive/data/0", 42, struct.pack("<I", 7)),
    "a directory beyond the file": zip_bytes(lambda content: content.__setitem__(slice(-10, -6), b"\xff" * 4)),
    "a zip without a directory": zip_with()[:-22],
    "a directory of 5 MB": b"PK\3\4" + bytes(5 << 20) + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, 5 << 20, 4, 0),
    "a pickle in a zip without an end": made.zip_file(Raw(b"]" * 9), {}).replace(b"]" * 9 + b".", b"]" * 10),
    "names with line ends": zip_with(extra={"a\nb\x1b[2J": tensor("0", (200,))}),
    "one name twice": zip_with(extra={"a": {"b": tensor("0", (2,), numel=108)}, "a.b": tensor("0", (2,), numel=108)}),
    "no dict": made.zip_file([tensor("0", (2,))], {"0": bytes(8)}),
    "no tensors": made.zip_file({"a": 1}, {}),
    "older PyTorch, another version": made.legacy_file(LEGACY_ROOT, LEGACY, protocol=1000),
    "older PyTorch, machine": made.legacy_file(LEGACY_ROOT, LEGACY, machine=[1]),
    "older PyTorch, big-endian": made.legacy_file(LEGACY_ROOT, LEGACY, machine={"little_endian": False}),
    "older PyTorch, a call": made.legacy_file(LEGACY_ROOT, LEGACY, machine=SYSTEM),
    "older PyTorch, a call in its keys": made.legacy_file(LEGACY_ROOT, LEGACY, keys=SYSTEM),
    "older PyTorch, no keys": made.legacy_file(LEGACY_ROOT, LEGACY, keys=[]),
    "older PyTorch, key twice": made.legacy_file(LEGACY_ROOT, LEGACY, keys=["0", "0"]),
    "older PyTorch, other key": made.legacy_file(LEGACY_ROOT, LEGACY, keys=["1"]),
    "older PyTorch, key that is a list": made.legacy_file(LEGACY_ROOT, LEGACY, keys=[["0"]]),
    "older PyTorch, count": made.legacy_file(LEGACY_ROOT, {"0": (3, bytes(12))}),
    "older PyTorch, count of 2**62": made.legacy_file({"a": tensor("0", (2,), numel=2**39)}, {"0": (2**39, b"")}),
    "older PyTorch, trailing": made.legacy_file(LEGACY_ROOT, LEGACY) + b"\0",
    "older PyTorch, view of a storage": made.legacy_file({"a": tensor("0", (2,), extra=(("1", 0, 2),))}, LEGACY),
    "older PyTorch, storage of two formats": made.legacy_file(
        {**LEGACY_ROOT, "b": tensor("0", (2,), "f8", extra=(None,))}, LEGACY),
    "Jittor, another checksum": made.jittor_file(pickle.dumps(ARRAYS, 4))[:-9] + b"\0HCAJSLHD",
    "Jittor, a call": made.jittor_file(pickled({"a": SYSTEM})),
    "Jittor, trailing": made.jittor_file(pickle.dumps(ARRAYS, 4) + b"\0"),
    "a pickle of storages": pickled(LEGACY_ROOT),
    "protocol 0": pickle.dumps({"a": 1}, 0),
    "protocol 0 behind a head of 2": b"\x80\x02" + pickle.dumps(ARRAYS, 0),
    "trailing": pickle.dumps(ARRAYS) + b"\0",
    "empty": b"",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(5000),
    "a tar": b"storages" + bytes(249) + b"ustar\x0000" + bytes(10000),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "a head alone": b"\x80\x04",
    **{f"safetensors, {name}": content for name, content in SAFETENSORS.items()},
    **{f"call, {name}": zip_with(extra=call) for name, call in CALLS.items()},
    **{f"call in a pickle, {name}": pickled({"a": CALLS[name]}) for name in CALLS},
    **{f"bomb, {name}": pickled(bomb) for name, bomb in BOMBS.items()},
    **{f"array, {name}": pickled({**{n: Raw(made.opcodes(numpy_array(a.shape, data=a.tobytes()))) for n, a in
                                     ARRAYS.items()}, LAST: call}) for name, call in ARRAY_FAULTS.items()},
    **{f"view, {name}": zip_with(last=call, storages={"x": b"\xff" * 16}) for name, call in VIEW_FAULTS.items()},
}
