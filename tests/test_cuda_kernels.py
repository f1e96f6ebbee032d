"""The CUDA kernels' arithmetic, without a GPU: their text is compiled for the CPU with cuda_emulation.h in place of
CUDA, and `jt.code` is replaced by something that runs it on numpy arrays. All that is compiled for a GPU is therefore
tested but for the inline assembly, whose instructions the emulation stands in for."""
import ctypes
import itertools
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jiidm.kernels import attention_cuda, group_norm_cuda, nearest_code_cuda
from jiidm.kernels.attention_bfloat16_cuda import MATRIX_UNITS

EPS = 1e-5
CPP = {"float32": "float", "bfloat16": "__nv_bfloat16", "int32": "int"}
NUMPY = {"float32": np.float32, "bfloat16": np.uint16, "int32": np.int32}


class Array:
    """What the kernels' Python functions ask of a Jittor variable; bfloat16 is held as its bits."""

    def __init__(self, values, dtype="float32", offset=0):
        values = np.asarray(values)
        if dtype == "bfloat16" and values.dtype != np.uint16:
            bits = values.astype(np.float32).view(np.uint32)
            values = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        # from a multiple of 64 bytes on, as allocators give, or `offset` numbers beyond one
        size = np.dtype(NUMPY[dtype]).itemsize
        memory = np.empty(values.size * size + 64 + offset * size, np.uint8)
        start = -memory.ctypes.data % 64 + offset * size
        self.bits = memory[start : start + values.size * size].view(NUMPY[dtype]).reshape(values.shape)
        self.bits[...] = values
        self.dtype, self.shape = dtype, list(values.shape)

    def float32(self):
        return self if self.dtype == "float32" else Array(self.numbers())

    def reshape(self, *shape):
        return Array(self.bits.reshape(shape), self.dtype)

    def numbers(self):
        bits = self.bits
        if self.dtype == "bfloat16":
            bits = (bits.astype(np.uint32) << 16).view(np.float32)
        return bits.astype(np.float64)


def for_cpu(text):
    """A kernel's header with CUDA's own syntax replaced by calls of the emulation."""
    text = text.replace(MATRIX_UNITS, "")
    text = re.sub(r"#include <(cuda|cooperative)[^>]*>", "", text)
    text = re.sub(r"extern __shared__ (\w+) (\w+)\[\];",
                  r"auto* \2 = reinterpret_cast<\1*>(emulation::dynamic_shared());", text)
    text = re.sub(r"__shared__ (\w+) (\w+)((?:\[\w+\])+);", r"auto& \2 = emulation::shared<\1\3, __LINE__>();", text)
    return re.sub(r"(\w+)<<<(.*?)>>>\((.*?)\);", r"emulation::launch(\2, [=] { \1(\3); });", text, flags=re.DOTALL)


def wrapper(number, source, dtypes, names):
    """A C function that runs `source` with the pointers, shapes and numbers that it is given."""
    for alias, variable in re.findall(r"@alias\((\w+), (\w+)\)", source):
        source = re.sub(rf"\b{alias}_(p\b|shape\d)", rf"{variable}_\1", source)
    lines = [f'extern "C" void run{number}(void** pointers, const int64_t (*shapes)[4], const double* values) {{',
             "using namespace jittor; std::map<std::string, double> data;"]
    lines += [f'data["{name}"] = values[{i}];' for i, name in enumerate(names)]
    for i, (variable, dtype) in enumerate(dtypes):
        lines.append(f"auto* {variable}_p = static_cast<{CPP[dtype]}*>(pointers[{i}]);")
        lines += [f"const int64_t {variable}_shape{axis} = shapes[{i}][{axis}];" for axis in range(4)]
    return "\n".join([*lines, re.sub(r"@alias\(.*?\)", "", source), "}"])


class Emulator:
    """Stands in for `jt`: `code` notes what is to be compiled and, once that is done, runs it."""

    def __init__(self):
        self.variants, self.library = {}, None
        self.flags = SimpleNamespace(cuda_archs=[90])
        self.no_grad = nullcontext

    def code(self, shapes, dtypes, inputs, cuda_header, cuda_src, data=None):
        single = isinstance(dtypes, str)
        outputs = [Array(np.full(s, 0xFFFF if t == "bfloat16" else -1 if t == "int32" else np.nan), t)
                   for s, t in ([(shapes, dtypes)] if single else zip(shapes, dtypes, strict=True))]
        variables = [*((f"in{i}", v) for i, v in enumerate(inputs)), *((f"out{i}", v) for i, v in enumerate(outputs))]
        key = cuda_header, cuda_src, tuple((name, v.dtype) for name, v in variables), tuple(data or ())
        if self.library is None:
            self.variants.setdefault(key, len(self.variants))
        else:
            pointers = (ctypes.c_void_p * len(variables))(*(v.bits.ctypes.data for _, v in variables))
            sizes = np.array([v.shape + [1] * (4 - len(v.shape)) for _, v in variables], np.int64)
            values = np.array([float(v) for v in (data or {}).values()] or [0.0])
            getattr(self.library, f"run{self.variants[key]}")(
                pointers, ctypes.c_void_p(sizes.ctypes.data), ctypes.c_void_p(values.ctypes.data))
        return outputs[0] if single else outputs

    def build(self, folder):
        headers = dict.fromkeys(for_cpu(header) for header, *_ in self.variants)
        text = ['#include "cuda_emulation.h"', "#include <map>", "#include <string>", *headers]
        text += [wrapper(number, *key[1:]) for key, number in self.variants.items()]
        text.append('extern "C" void backwards(int on) { emulation::backwards = on; }')
        (folder / "kernels.cpp").write_text("\n".join(text))
        subprocess.run(["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-w", "-fPIC", "-shared",
                        f"-I{Path(__file__).parent}", folder / "kernels.cpp", "-o", folder / "kernels.so"], check=True)
        self.library = ctypes.CDLL(str(folder / "kernels.so"))


def modulated(x, groups, maps, channels, silu):
    """group_norm_cuda of ones, for what it compiles."""
    n, c = x.shape[:2]
    group_norm_cuda.group_norm_cuda(x, groups, EPS, [Array(np.ones(x.shape), maps)] * 2 if maps else None,
                                    [Array(np.ones((n, c)))] * 2 if channels else None, silu)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    """All variants that the tests below use, compiled at once."""
    emulator = Emulator()
    with pytest.MonkeyPatch.context() as patch:
        for module in (group_norm_cuda, attention_cuda, nearest_code_cuda):
            patch.setattr(module, "jt", emulator)
        for dtype, maps, channels, silu in GROUP_NORMS:
            modulated(Array(np.ones((1, 4, 1, 2)), dtype), 2, maps, channels, silu)
        for dtype in ("float32", "bfloat16"):
            for depth in DEPTHS:
                attention_cuda.attention_cuda(*[Array(np.ones((1, depth, 1)), dtype)] * 3)
        nearest_code_cuda.nearest_code_cuda(Array(np.ones((1, 3))), Array(np.ones((1, 3))))
        emulator.build(tmp_path_factory.mktemp("cuda"))
        yield emulator


@pytest.fixture(params=["forwards", "backwards"])
def order(request, emulator):
    """The order in which threads run between barriers."""
    emulator.library.backwards(int(request.param == "backwards"))
    emulator.flags.cuda_archs = [90]


@pytest.fixture
def normal():
    """A function of a shape: standard normal numbers, the same in each run."""
    random = np.random.default_rng(0)
    return lambda *shape: random.standard_normal(shape)


def close(actual, exact, tolerance):
    """Whether a result is within `tolerance` of the largest exact value, and rounded to its dtype."""
    error = np.abs(actual.numbers() - exact)
    rounding = np.abs(exact) * 2.0**-8 if actual.dtype == "bfloat16" else 0
    return (error <= rounding + tolerance * np.abs(exact).max()).all()


# ---- group norm

# dtype of x, of the maps, whether there are channels, SiLU
GROUP_NORMS = [
    ("float32", None, False, False),
    ("float32", None, True, True),
    ("float32", "float32", False, True),
    ("float32", "float32", True, True),
    ("bfloat16", None, True, False),
    ("bfloat16", "bfloat16", True, True),
    ("bfloat16", "float32", False, True),
]


def group_norm_exact(x, groups, maps, channels, silu):
    h = x.reshape(x.shape[0], groups, -1)
    h = ((h - h.mean(2, keepdims=True)) / np.sqrt(h.var(2, keepdims=True) + EPS)).reshape(x.shape)
    if maps:
        h = h * maps[0].numbers() + maps[1].numbers()
    if channels:
        h = h * channels[0].numbers()[:, :, None, None] + channels[1].numbers()[:, :, None, None]
    return h / (1 + np.exp(-h)) if silu else h


def check_group_norm(normal, x, groups, variant, maps_for=None, channels_for=None, tolerance=1e-5):
    """`maps_for` and `channels_for` are the batches of the maps and channels, by default that of x."""
    dtype, map_dtype, with_channels, silu = variant
    n, c, height, width = x.shape
    extent = (maps_for or n, c, height, width)
    maps = tuple(Array(normal(*extent), map_dtype) for _ in range(2)) if map_dtype else None
    channels = tuple(Array(normal(channels_for or n, c)) for _ in range(2)) if with_channels else None
    y = group_norm_cuda.group_norm_cuda(x, groups, EPS, maps, channels, silu)
    assert y.dtype == dtype
    assert close(y, group_norm_exact(x.numbers(), groups, maps, channels, silu), tolerance)


@pytest.mark.parametrize("shape, groups", [
    ((2, 64, 6, 8), 32),       # one block a group
    ((1, 2048, 3, 5), 32),     # channels of odd size: packs reach into the next one
    ((3, 32, 1, 1), 8),
    ((1, 6, 31, 33), 3),       # nothing is aligned
    ((2, 4, 60, 72), 2),       # a cluster of two blocks or more a group
    ((1, 2, 97, 131), 1),      # several chunks a group, not aligned
])
@pytest.mark.parametrize("variant", GROUP_NORMS, ids=str)
def test_group_norm(normal, order, shape, groups, variant):
    check_group_norm(normal, Array(normal(*shape) * 2 + 3, variant[0]), groups, variant)


@pytest.mark.parametrize("archs", [[80], [90]])
@pytest.mark.parametrize("size", [3, 33, 160, 260])   # thousands: one block, a cluster, more a thread, chunks
@pytest.mark.parametrize("variant", GROUP_NORMS[3:6:2], ids=str)
def test_group_norm_of_large_groups(normal, order, emulator, archs, size, variant):
    emulator.flags.cuda_archs = archs
    check_group_norm(normal, Array(normal(1, 8, 32, size * 8) + 1, variant[0]), 2, variant)


@pytest.mark.parametrize("variant", GROUP_NORMS[3:6:2], ids=str)
@pytest.mark.parametrize("maps_for, channels_for", [(1, 3), (3, 1), (1, 1)])
def test_group_norm_with_modulation_for_all_samples(normal, order, variant, maps_for, channels_for):
    check_group_norm(normal, Array(normal(3, 8, 6, 10), variant[0]), 2, variant, maps_for, channels_for)


def test_group_norm_with_a_number_a_channel(normal, order):
    x, scale, shift = Array(normal(2, 8, 6, 10)), Array(normal(8)), Array(normal(8))
    y = group_norm_cuda.group_norm_cuda(x, 2, EPS, None, (scale, shift), True)
    channels = [v.reshape(1, 8) for v in (scale, shift)]
    assert close(y, group_norm_exact(x.numbers(), 2, None, channels, True), 1e-5)


@pytest.mark.parametrize("maps, channels", [
    ([(2, 8, 6, 10)] * 2, None), ([(1, 8, 6, 10), (3, 8, 6, 10)], None), ([(1, 8, 10, 6)] * 2, None),
    (None, [(2, 8)] * 2), (None, [(8,), (3, 8)]), (None, [(4,)] * 2),
])
def test_group_norm_refuses_modulation_of_another_size(normal, emulator, maps, channels):
    maps, channels = ([Array(normal(*s)) for s in shapes] if shapes else None for shapes in (maps, channels))
    with pytest.raises(ValueError):
        group_norm_cuda.group_norm_cuda(Array(normal(3, 8, 6, 10)), 2, EPS, maps, channels)


def test_group_norm_of_part_of_an_array(normal, order):
    """Memory that starts anywhere."""
    check_group_norm(normal, Array(normal(2, 8, 6, 10), offset=1), 2, GROUP_NORMS[3])


@pytest.mark.parametrize("archs", [[80], [90]])
def test_group_norm_with_a_large_mean(normal, order, emulator, archs):
    """Mean 1e4, deviation 0.1; E[x^2] - E[x]^2 would be noise, and the mean as a float 1 % of the deviation off."""
    emulator.flags.cuda_archs = archs
    for shape in ((1, 4, 64, 96), (2, 4, 5, 7)):
        check_group_norm(normal, Array(normal(*shape) * 0.1 + 1e4), 2, GROUP_NORMS[0])


def test_group_norm_with_a_first_number_far_off(normal, order):
    """The differences are taken from that number."""
    x = normal(1, 2, 64, 96)
    x[0, 0, 0, 0] = 1e4
    check_group_norm(normal, Array(x), 1, GROUP_NORMS[0], tolerance=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e4])
def test_group_norm_of_a_constant(normal, order, value):
    """Nothing but the shift is left."""
    x, shift = Array(np.full((2, 64, 9, 12), value)), Array(normal(2, 64))
    y = group_norm_cuda.group_norm_cuda(x, 32, EPS, None, (Array(normal(2, 64)), shift), True)
    s = shift.numbers()[:, :, None, None]
    assert close(y, np.broadcast_to(s / (1 + np.exp(-s)), y.shape), 1e-6)


# ---- attention

DEPTHS = (8, 40, 64, 128)


def attention_exact(q, k, v):
    score = np.einsum("bdi,bdj->bij", q, k) / np.sqrt(q.shape[1])
    share = np.exp(score - score.max(2, keepdims=True))
    return np.einsum("bij,bdj->bdi", share / share.sum(2, keepdims=True), v)


@pytest.mark.parametrize("heads, depth, length", [
    (2, 64, 64),
    (3, 8, 1),
    (2, 40, 17),     # depth and length are no multiple of anything
    (2, 64, 200),    # aligned, the last tile partly full
    (1, 40, 121),    # the last tile nearly full
    (1, 128, 131),
    (1, 8, 1000),
    (1, 64, 768),
])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_attention(normal, order, heads, depth, length, dtype, tolerance):
    q, k, v = (Array(normal(heads, depth, length), dtype) for _ in range(3))
    out = attention_cuda.attention_cuda(q, k, v)
    assert close(out, attention_exact(*(a.numbers() for a in (q, k, v))), tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 1e-2)])
def test_attention_with_growing_scores(normal, order, dtype, tolerance):
    """Scores of some thousands whose maximum rises from tile to tile; exp of them would overflow."""
    q, k, v = (normal(2, 64, 200) for _ in range(3))
    k *= np.linspace(1, 40, 200)
    q, k, v = (Array(a, dtype) for a in (q * 20, k, v))
    out = attention_cuda.attention_cuda(q, k, v)
    assert close(out, attention_exact(*(a.numbers() for a in (q, k, v))), tolerance)


def test_what_attention_supports(emulator):
    for archs, dtype, depth, expected in [
        ([90], "float32", 128, True), ([90], "bfloat16", 64, True), ([90], "float32", 129, False),
        ([75, 90], "bfloat16", 64, False), ([75], "float32", 64, True), ([61], "float32", 64, False),
        ([], "float32", 64, False), ([90], "float16", 64, False),
    ]:
        emulator.flags.cuda_archs = archs
        assert attention_cuda.supports(SimpleNamespace(shape=[1, depth, 9], dtype=dtype)) == expected


# ---- nearest code

def nearest_exact(z, codes):
    """Sums in float32 and in order; argmin gives the first among equals."""
    distance = np.zeros((z.shape[0], codes.shape[0]), np.float32)
    for d in range(z.shape[1]):
        difference = z[:, None, d] - codes[None, :, d]
        distance += difference * difference
    return distance.argmin(1)


@pytest.mark.parametrize("positions, codes, depth", [
    (1, 1, 3), (64, 32, 1), (100, 7, 4), (77, 1025, 3), (130, 6000, 3), (65, 700, 32), (10, 300, 17),
])
def test_nearest_code(normal, order, positions, codes, depth):
    z, codebook = Array(normal(positions, depth)), Array(normal(codes, depth))
    index = nearest_code_cuda.nearest_code_cuda(z, codebook)
    assert index.dtype == "int32" and np.array_equal(index.bits, nearest_exact(z.bits, codebook.bits))


@pytest.mark.parametrize("copies", [2, 40])
def test_the_first_of_equal_codes(normal, order, copies):
    """Copies lie in other threads' shares and in other tiles."""
    codebook = np.tile(normal(90, 3), (copies, 1))
    index = nearest_code_cuda.nearest_code_cuda(Array(codebook[:90]), Array(codebook))
    assert np.array_equal(index.bits, np.arange(90))


def test_nearest_code_adds_in_order(normal, order):
    """The offsets of these codes are permutations of each other: rounding alone decides."""
    for _ in range(20):
        offsets = np.array(list(itertools.permutations(normal(5))))
        z, codebook = Array(np.zeros((1, 5))), Array(offsets)
        index = nearest_code_cuda.nearest_code_cuda(z, codebook)
        assert np.array_equal(index.bits, nearest_exact(z.bits, codebook.bits))
