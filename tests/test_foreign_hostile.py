"""Files that are damaged, or made to do harm: each is refused in one line; nothing is run, written or filled up."""
import copyreg
import json
import os
import pickle
import random
import struct
import subprocess
import sys

import foreign_files as made
import pytest
import yaml
from foreign_files import Global, Raw, pickled, tensor
from helpers import ROOT, reference_shapes, refused
from hostile_files import ARRAYS, CALLS, FILES, MARK, SECTION, numpy_array, zip_with
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jiidm.config import Config, to_dict
from jiidm.foreign.archive import open_weights
from jiidm.foreign.convert import list_tensors, plan_conversion, write_checkpoint
from jiidm.system.errors import InputError

CONFIG = Config(autoencoder=SECTION)
RUNNER = """
import contextlib, io, json, pathlib, resource, runpy, sys, time, traceback
import copyreg, os
copyreg.add_extension("os", "system", 0xf0)
tool, folder = sys.argv[1:]
import yaml, numpy, safetensors  # their memory is not the files'
resource.setrlimit(resource.RLIMIT_AS, (3 << 30,) * 2)
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
found, before = {}, peak()
for path in sorted(pathlib.Path(folder).iterdir()):
    errors, start, code = io.StringIO(), time.perf_counter(), None
    sys.argv = [tool, str(path), "out.safetensors", "--config", "config.yaml"]
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            runpy.run_path(tool, run_name="__main__")
        except SystemExit as end:
            code = end.code
        except BaseException:
            code = traceback.format_exc()
    found[path.name] = (code, errors.getvalue(), time.perf_counter() - start, "jittor" in sys.modules)
json.dump({"files": found, "KiB": peak() - before}, sys.stdout)
"""
CODE = ("call", "bomb")
ORDER = sorted(FILES, key=lambda name: not name.startswith(CODE))  # those that would run something come first


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """What the tool says to each of FILES, all in one process; and what else that process did."""
    top = tmp_path_factory.mktemp("hostile")
    (top / "files").mkdir()
    (top / "config.yaml").write_text(yaml.safe_dump(to_dict(CONFIG)))
    for number, name in enumerate(ORDER):
        (top / "files" / f"{number:03}").write_bytes(FILES[name])
    done = subprocess.run([sys.executable, "-c", RUNNER, ROOT / "tools" / "convert.py", "files"], cwd=top, text=True,
                          env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tools", "OPENBLAS_NUM_THREADS": "1"},
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "left": {p.name for p in top.iterdir()}}


@pytest.mark.parametrize("name", FILES)
def test_refused_in_one_line(outcome, name):
    code, errors, seconds, jittor = outcome["files"][f"{ORDER.index(name):03}"]
    assert code == 2, code
    assert errors.startswith(("error: files/", "error: out.safetensors: NaN or")), errors
    assert errors.count("\n") == 1 and errors.isascii(), errors
    assert errors.strip().isprintable() and len(errors) < 600, errors
    assert seconds < 20
    assert not (jittor and name.startswith(CODE))


def test_nothing_was_run_or_written_or_filled_up(outcome):
    assert outcome["left"] == {"files", "config.yaml"}
    assert outcome["KiB"] < 300 * 1024


def test_the_calls_are_live(tmp_path, monkeypatch):
    """Python's own unpickler does run them; and without the fault each file is good."""
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "os.system by stack", "builtins.eval", "INST", "OBJ", "EXT1"):
        copyreg.add_extension("os", "system", 0xF0)
        try:
            pickle.loads(pickled({"a": CALLS[name]}))
        finally:
            copyreg.remove_extension("os", "system", 0xF0)
            copyreg.clear_extension_cache()
        assert (tmp_path / MARK).exists(), name
        (tmp_path / MARK).unlink()
    for number, content in enumerate((zip_with(), zip_with(extra=tensor("0", (2,), numel=108)), pickled(
            {n: numpy_array(a.shape, data=a.tobytes()) for n, a in ARRAYS.items()}), made.safetensors(ARRAYS),
            zip_with(last=tensor("x", (2,), "bfloat16"), storages={"x": bytes(4)}))):
        attempt(tmp_path / f"{number}", content)
        assert (tmp_path / f"{number}.safetensors").exists()


def attempt(path, content):
    """Converts a file of the given content."""
    path.write_bytes(content)
    weights = open_weights(path)
    assert all(isinstance(line, str) for line in list_tensors(weights))
    write_checkpoint(plan_conversion(weights, config=path.parent / "config.yaml"), path.with_suffix(".safetensors"))


@pytest.fixture(autouse=True)
def config_file(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(CONFIG)))


def test_messages_say_what_is_wrong(tmp_path):
    for name, words in (
        ("call, os.system", ["names os.system", "nothing of it was run"]),
        ("call, builtins.getattr", ["names builtins.getattr"]),
        ("call, INST", ["opcode INST"]),
        ("call, name with a newline", [r"os\nsystem"]),
        ("array, objects", ["numpy's format O8"]),
        ("array, NaN", ["NaN or Inf in post_quant_conv.bias"]),
        ("view, 10 GB", ["state_dict.post_quant_conv.bias: shape (2621440000,)", "108 numbers"]),
        ("view, a negative stride", ["strides (-1)"]),
        ("view, int64", ["post_quant_conv.bias (int64)"]),
        ("entry ../../outside", ["../../outside"]),
        ("a bomb in a zip", ["archive/data.pkl is compressed"]),
        ("safetensors, overlapping", ["invalid offset for tensor"]),
        ("Jittor, another checksum", ["checksum"]),
    ):
        refused(lambda name=name: attempt(tmp_path / "file", FILES[name]), tmp_path / "file", *words)
    refused(lambda: open_weights(tmp_path), tmp_path, "is a folder")
    shapes = reference_shapes("autoencoder").items()
    path = tmp_path / "one number for all"
    path.write_bytes(made.zip_file({n: tensor("0", tuple(s), numel=1, strides=(0,) * len(s)) for n, s in shapes},
                                   {"0": bytes(4)}))
    refused(lambda: plan_conversion(open_weights(path)), path, "claim 221")
    refused(lambda: open_weights(tmp_path / "none"), "no such file")


@pytest.mark.parametrize("make", made.FORMATS)
def test_cut_off_anywhere(tmp_path, make):
    content = made.FORMATS[make](ARRAYS)
    places = {*range(0, len(content), len(content) // 50), *range(len(content) - 40, len(content))}
    for place in places - ({len(content) - 28} if make == "Jittor" else set()):  # without its checksum it is a pickle
        refused(lambda place=place: attempt(tmp_path / "file", content[:place]))
    assert {p.name for p in tmp_path.iterdir()} == {"file", "config.yaml"}


# ---- anything at all

EDITS = st.lists(st.tuples(st.sampled_from(["set", "insert", "cut", "repeat"]), st.integers(0, 2**20),
                           st.binary(min_size=1, max_size=9)), min_size=1, max_size=5)
FUZZ = settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])


def survives(path, content):
    try:
        attempt(path, content)
    except InputError as error:
        assert "\n" not in str(error)


@FUZZ
@given(st.sampled_from(sorted(made.FORMATS)), st.booleans(), EDITS)
def test_spoilt_files(tmp_path, make, at_end, edits):
    content = made.FORMATS[make](ARRAYS)
    for kind, place, piece in edits:
        place = len(content) - place % 300 if at_end else place % (len(content) + 1)  # a zip's directory is at its end
        rest = {"set": len(piece), "insert": 0, "cut": len(piece), "repeat": -len(piece)}[kind]
        content = content[:place] + (b"" if kind == "cut" else piece) + content[max(place + rest, 0):]
    survives(tmp_path / "file", content)


FRAGMENTS = [
    *(made.opcodes(v) for v in (None, True, 0, 3, -1, 2**70, 1.5, "a", "storage", b"abcd", (), [], {}, ("a", 1))),
    *(made.opcodes(Global(m, n)) for m, n in (
        ("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"),
        ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct"), ("numpy.core.numeric", "_frombuffer"),
        ("_codecs", "encode"), ("jittor", "Var"), ("argparse", "Namespace"), ("os", "system"))),
    made.opcodes(numpy_array((2,))), made.opcodes(tensor("0", (2,))), made.opcodes(made.ORDERED_DICT),
    *(bytes([code]) for code in range(256)), b"h\x00", b"q\x00", *(bytes([code]) for code in b"\x94(tRbsueQ"),
]


@FUZZ
@given(st.lists(st.sampled_from(FRAGMENTS) | st.binary(max_size=5), max_size=40), st.integers(2, 5), st.booleans())
def test_any_opcodes(tmp_path, fragments, protocol, zipped):
    stream = b"".join(fragments)
    content = made.zip_file({"a": Raw(stream)}, {"0": bytes(8)}) if zipped else (
        b"\x80" + bytes([protocol]) + b"}(" + made.opcodes("a") + stream + b"u.")
    survives(tmp_path / "file", content)


def test_any_bytes(tmp_path):
    generator = random.Random(0)
    for head in (b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x04", struct.pack("<Q", 50) + b"{"):
        for _ in range(40):
            survives(tmp_path / "file", head + generator.randbytes(generator.randrange(300)))
