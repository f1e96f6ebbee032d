"""The compiled operations against the same in Jittor's own operators, forward and backward."""
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, numbers, relative_error, resident_bytes

from jiidm.kernels.attention import attention, attention_plain
from jiidm.kernels.group_norm import group_norm, group_norm_plain
from jiidm.kernels.layout import from_blocks, to_blocks
from jiidm.kernels.nearest_code import nearest_code, nearest_code_plain
from jiidm.kernels.parameters import adamw_step, sum_of_squares, towards
from jiidm.kernels.pointwise import pointwise
from jiidm.kernels.winograd import winograd
from jiidm.system.runtime import jt, nn

# fp32 sums in another order
CLOSE = 1e-5
EPS = 1e-5


@pytest.fixture
def normal():
    """A function of a shape: standard normal Jittor arrays, the same in each run."""
    random = np.random.default_rng(0)
    return lambda *shape: jt.array(random.standard_normal(shape).astype("float32"))


def results(operation, inputs, weight):
    """The result and the gradients, with respect to the inputs, of its sum weighted by `weight`."""
    out = operation(*inputs)
    return [out, *jt.grad((out * weight).sum(), list(inputs))]


# ---- group norm

@pytest.mark.parametrize("modulation", ["channel", "sample", "map", "map and sample"])
@pytest.mark.parametrize("shape, groups", [
    ((2, 64, 9, 12), 32),
    ((1, 24, 5, 7), 24),   # a channel a group; rows that are no multiple of a vector
    ((2, 32, 1, 1), 4),
    ((1, 6, 31, 33), 3),
])
def test_group_norm(normal, shape, groups, modulation):
    x, weight = normal(*shape) * 2 + 3, normal(*shape)
    extents = {"channel": [shape[1:2]], "sample": [shape[:2]], "map": [shape], "map and sample": [shape, shape[:2]]}
    inputs = x, *(normal(*extent) for extent in extents[modulation] for _ in range(2))

    def modulated(f, x, *pairs):
        names = ["maps"] * ("map" in modulation) + ["modulation"] * (modulation != "map")
        return f(x, groups, EPS, **dict(zip(names, zip(pairs[::2], pairs[1::2], strict=True), strict=True)), silu=True)

    actual, expected = (
        results(lambda *inputs, f=f: modulated(f, *inputs), inputs, weight) for f in (group_norm, group_norm_plain)
    )
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < CLOSE


@pytest.mark.parametrize("silu", [False, True])
def test_group_norm_alone(normal, silu):
    x, weight = normal(2, 64, 9, 12), normal(2, 64, 9, 12)
    actual, expected = (
        results(lambda x, f=f: f(x, 32, EPS, silu=silu), (x,), weight) for f in (group_norm, group_norm_plain)
    )
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < CLOSE


@pytest.mark.parametrize("size", [1, 9 * 12, 144 * 192])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3])
def test_group_norm_of_a_constant(normal, value, size):
    """Nothing but the shift is left, and of x what the mean, a float, misses in its last place."""
    x = jt.full((2, 64, size, 1), value)
    scale, shift = normal(64), normal(64)
    left = 4 * np.spacing(np.float32(abs(value))) / np.sqrt(EPS)
    for f in (group_norm, group_norm_plain):
        out, *gradients = results(lambda x, f=f: f(x, 32, EPS, modulation=(scale, shift)), (x,), normal(*x.shape))
        error = numbers(out) - numbers(shift)[:, None, None]
        assert np.abs(error).max() <= left * np.abs(numbers(scale)).max()
        assert all(np.isfinite(g.numpy()).all() for g in gradients)


@pytest.mark.parametrize("shape", [(2, 64, 9, 12), (1, 4, 144, 192)])
def test_group_norm_with_a_large_mean(normal, shape):
    """Mean 1e4, deviation 1: E[x^2] - E[x]^2 in fp32 would be noise. The mean itself is a float, exact to 5e-4."""
    x = normal(*shape) + 1e4
    exact = numbers(x).reshape(shape[0], 2, -1)
    exact = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + EPS)
    for f in (group_norm, group_norm_plain):
        error = numbers(f(x, 2, EPS)) - exact.reshape(shape)
        assert np.abs(error).max() < 2 * np.spacing(np.float32(1e4))


# ---- attention

@pytest.mark.parametrize("heads, depth, length", [
    (8, 32, 108),
    (3, 5, 37),     # neither a multiple of the vector nor of the tile
    (2, 16, 64),    # no padding
    (66, 3, 130),   # more heads than are copied at a time, several blocks of queries
])
def test_attention(normal, heads, depth, length):
    inputs, weight = [normal(heads, depth, length) for _ in range(3)], normal(heads, depth, length)
    actual, expected = (results(f, inputs, weight) for f in (attention, attention_plain))
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) < CLOSE


def test_attention_of_one_position(normal):
    """Its weight is 1 whatever the score."""
    inputs, weight = [normal(3, 8, 1) for _ in range(3)], normal(3, 8, 1)
    out, dq, dk, dv = results(attention, inputs, weight)
    assert relative_error(out, inputs[2]) < CLOSE
    assert relative_error(dv, weight) < CLOSE
    assert np.abs(numbers(dq)).max() < CLOSE and np.abs(numbers(dk)).max() < CLOSE


def test_attention_with_large_scores(normal):
    """Scores of some thousands: the maximum is taken off before exp."""
    q, k, v = normal(2, 16, 50) * 40, normal(2, 16, 50) * 40, normal(2, 16, 50)
    score = np.einsum("bdi,bdj->bij", numbers(q), numbers(k)) / 4
    share = np.exp(score - score.max(2, keepdims=True))
    exact = np.einsum("bij,bdj->bdi", share / share.sum(2, keepdims=True), numbers(v))
    # a score is exact to a 1e-7th of itself, its exponential to as much as that is absolutely
    assert relative_error(attention(q, k, v), exact) < 4 * np.abs(score).max() * np.spacing(np.float32(1))


# ---- nearest code

def chosen_is_nearest(z, codebook, index):
    """Whether each chosen code is as near as the nearest, up to rounding."""
    z, codebook = numbers(z), numbers(codebook)
    distance = np.stack([((z - code) ** 2).sum(1) for code in codebook], 1)
    taken = np.take_along_axis(distance, index.numpy()[:, None].astype(int), 1)[:, 0]
    return (taken <= distance.min(1) * (1 + 1e-5) + 1e-12).all()


@pytest.mark.parametrize("positions, codes, depth", [(1, 1, 3), (5000, 100, 3), (77, 1025, 3), (130, 2500, 4)])
def test_nearest_code(normal, positions, codes, depth):
    z, codebook = normal(positions, depth), normal(codes, depth)
    for f in (nearest_code, nearest_code_plain):
        index = f(z, codebook)
        assert index.shape == [positions] and index.dtype == "int32"
        assert chosen_is_nearest(z, codebook, index)


def test_the_first_of_equal_codes(normal):
    codebook = jt.concat([normal(900, 3)] * 3)  # copies in other blocks of the search
    for f in (nearest_code, nearest_code_plain):
        assert np.array_equal(f(codebook[:900], codebook).numpy(), np.arange(900))


@pytest.mark.skipif(bool(jt.flags.use_cuda), reason="the memory in question is the CPU's")
def test_nearest_code_needs_little_memory(normal):
    """Two pictures at full size against 8192 codes; all the distances at once would take 800 MB."""
    z, codebook = normal(2 * 96 * 128, 3), normal(8192, 3)
    jt.sync([z, codebook])
    before = resident_bytes()
    assert nearest_code(z, codebook).numpy().max() < 8192
    assert resident_bytes() - before < 50e6


# ---- convolution in blocks of channels

@pytest.mark.parametrize("x, out", [
    ((2, 29, 36, 48), 32),     # channels that fill no block
    ((2, 96, 17, 23), 48),     # rows that are no multiple of a tile
    ((3, 192, 9, 12), 192),
    ((1, 16, 26, 25), 240),
    ((2, 4, 7, 5), 8),
])
@pytest.mark.parametrize("relu", [False, True])
def test_winograd(normal, x, out, relu):
    inputs, coefficients = (normal(*x), normal(out, x[1], 3, 3), normal(out)), normal(x[0], out, *x[2:])

    def ours(x, weight, bias):
        return from_blocks(winograd(to_blocks(x), weight, bias, relu), out)

    def theirs(x, weight, bias):  # near zero the two would cut at different places: hence the same places for both
        y = nn.conv2d(x, weight, bias, 1, 1)
        return y * (ours(x, weight, bias).detach() > 0) if relu else y

    for found, expected in zip(results(ours, inputs, coefficients), results(theirs, inputs, coefficients), strict=True):
        assert relative_error(found, expected) < CLOSE


@pytest.mark.parametrize("x, out", [((2, 144, 9, 12), 48), ((2, 32, 17, 23), 576), ((3, 64, 1, 1), 16)])
def test_pointwise(normal, x, out):
    inputs, coefficients = (normal(*x), normal(out, x[1]), normal(out)), normal(x[0], out, *x[2:])

    def ours(x, weight, bias):
        return from_blocks(pointwise(to_blocks(x), weight, bias), out)

    def theirs(x, weight, bias):
        return nn.conv2d(x, weight.reshape(*weight.shape, 1, 1), bias)

    for found, expected in zip(results(ours, inputs, coefficients), results(theirs, inputs, coefficients), strict=True):
        assert relative_error(found, expected) < CLOSE


@pytest.mark.parametrize("given", ["nothing", "channels", "maps", "both"])
@pytest.mark.parametrize("shape, groups", [
    ((2, 48, 9, 12), 12),     # four groups a block
    ((2, 144, 5, 7), 12),     # groups of three quarters of a block
    ((1, 64, 31, 33), 2),     # groups of two blocks; more positions than a chunk
])
def test_gradients_of_group_norm_in_blocks(normal, shape, groups, given):
    images, channels = shape[:2]
    x, weight = normal(*shape) * 2 + 3, normal(*shape)
    maps = [normal(*shape) for _ in range(2)] * (given in ("maps", "both"))
    pair = [normal(images, channels) for _ in range(2)] * (given in ("channels", "both"))

    def ours(x, *rest):
        joint = (to_blocks(jt.concat([rest[0] - 1, rest[1]], 1)),) if maps else None
        modulation = rest[-2:] if pair else None
        return from_blocks(group_norm(to_blocks(x), groups, EPS, joint, modulation, silu=True), channels)

    def theirs(x, *rest):
        return group_norm_plain(x, groups, EPS, rest[:2] if maps else None, rest[-2:] if pair else None, silu=True)

    inputs = x, *maps, *pair
    for found, expected in zip(results(ours, inputs, weight), results(theirs, inputs, weight), strict=True):
        assert relative_error(found, expected) < CLOSE


@pytest.mark.parametrize("shape", [(2, 29, 5, 7), (1, 16, 4, 8), (3, 3, 1, 1)])
def test_blocks_hold_the_channels(normal, shape):
    x, channels = normal(*shape), shape[1]
    blocks = to_blocks(x)
    assert blocks.shape == [shape[0], -(-channels // 16), *shape[2:], 16]
    assert np.array_equal(from_blocks(blocks, channels).numpy(), x.numpy())
    whole = from_blocks(blocks, blocks.shape[1] * 16).numpy()
    assert not whole[:, channels:].any()


# ---- the optimiser

def test_adamw(normal):
    shapes, found = [(8, 4, 3, 3), (7,)], []
    start, gradients = [normal(*s).numpy() for s in shapes], [[normal(*s) for s in shapes] for _ in range(3)]
    for step in (adamw_step, lambda optimizer: optimizer.step()):
        parameters = [jt.array(value) for value in start]
        optimizer = jt.optim.AdamW(parameters, 0.1, betas=(0.5, 0.9), weight_decay=0.2)
        for n, values in enumerate(gradients):
            optimizer.n_step, group = n + 1, optimizer.param_groups[0]
            group["grads"] = values
            step(optimizer)
        found.append([*parameters, *group["values"], *group["m"]])
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) < CLOSE


@pytest.mark.parametrize("shape", [(1,), (7, 3), (8192,), (30, 700)])
def test_averages_and_norms_of_parameters(normal, shape):
    a, b = normal(*shape), normal(*shape)
    assert relative_error(towards(a, b, 0.1), numbers(a) + (numbers(b) - numbers(a)) * 0.1) < CLOSE
    assert relative_error(sum_of_squares(a), [(numbers(a) ** 2).sum()]) < CLOSE
    for value in (np.nan, np.inf, 1e30):
        spoilt = a.numpy()
        spoilt.flat[-1] = value
        assert not np.isfinite(sum_of_squares(jt.array(spoilt)).item())


SUMS = """
import hashlib
import numpy as np
from jiidm.kernels.parameters import sum_of_squares
from jiidm.kernels.winograd import winograd
from jiidm.system.runtime import jt
rng = np.random.default_rng(0)
x, w, b = (jt.array(rng.standard_normal(shape, np.float32)) for shape in ((3, 2, 10, 14, 16), (48, 29, 3, 3), (48,)))
y = winograd(x, w, b)
results = [y, *jt.grad((y * y).sum(), [x, w, b]), sum_of_squares(jt.array(rng.standard_normal(50_000, np.float32)))]
print(hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest())
"""


@pytest.mark.slow
def test_no_sum_depends_on_the_number_of_threads():
    found = set()
    for threads in ("1", "2", "3"):
        done = subprocess.run([sys.executable, "-c", SUMS], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads})
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
