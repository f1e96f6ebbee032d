"""The fast path of inference against the plain one: kernels, networks, the chain, and what `Generator` makes of it."""
import hashlib

import numpy as np
import pytest
from helpers import made_up, numbers, reference, relative_error

from jiidm import Generator, InputError
from jiidm.config import AutoencoderConfig, DiffusionConfig, UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.refinement import _AT_A_TIME, _in_parts, draw_noise
from jiidm.kernels import compiled, plain_operators
from jiidm.kernels.convolution import BLOCK, LeanConvolution, PackedConvolution, blocked, inference_convolution
from jiidm.kernels.group_norm import group_norm, group_norm_plain
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import conv1x1, conv3x3, prepare, store_half
from jiidm.models.unet import Conditions, ReferenceConditions, UNet
from jiidm.system.runtime import jt, nn

CLOSE = 1e-5


@pytest.fixture
def normal():
    random = np.random.default_rng(1)
    return lambda *shape: jt.array(random.standard_normal(shape, np.float32))


@pytest.fixture(params=[(PackedConvolution, 10**9), (PackedConvolution, 130), (LeanConvolution, 130)],
                ids=["oneDNN's Winograd", "our Winograd", "lean"])
def kind(request, monkeypatch):
    """The class of the convolutions; small maps take the way of large ones, too."""
    kind, positions = request.param
    monkeypatch.setattr(kind, "winograd_from", positions)
    return kind


@pytest.fixture(autouse=True)
def inference():
    if inference_convolution("cpu", "fp32", 16) is None:
        pytest.skip("this Jittor has no oneDNN")
    with jt.no_grad():
        yield


def unblocked(x):
    """N, C/16, H, W, 16 -> N, C, H, W."""
    n, c, h, w, _ = x.shape
    return x.permute(0, 1, 4, 2, 3).reshape(n, c * BLOCK, h, w)


# ---- convolution

@pytest.mark.parametrize("images, channels, out, height, width, kernel, stride, padding", [
    (1, 32, 48, 12, 16, 3, 1, (1, 1)),    # Winograd
    (2, 48, 32, 13, 19, 3, 1, (1, 1)),    # Winograd, sizes that are no multiple of its tile
    (3, 32, 32, 6, 8, 3, 1, (1, 1)),      # too small for it
    (2, 16, 32, 12, 18, 3, 2, (0, 1)),    # down-sampling, zeros on the right and below only
    (2, 64, 96, 9, 7, 1, 1, (0, 0)),
    (2, 3, 32, 12, 16, 3, 1, (1, 1)),     # channels that fill no block, in
    (2, 32, 6, 12, 16, 3, 1, (1, 1)),     # and out
    (1, 29, 128, 1, 1, 3, 1, (1, 1)),
])
def test_convolution(normal, kind, images, channels, out, height, width, kernel, stride, padding):
    x, weight, bias = normal(images, channels, height, width), normal(out, channels, kernel, kernel), normal(out)
    padded = nn.pad(x, [padding[0], padding[1]] * 2)
    expected = nn.conv2d(padded, weight, bias, stride, 0)
    packed = kind(weight, bias, stride, padding)
    for given in (x, blocked(x)) if channels % 16 == 0 else (x,):
        for plain in (False, True):
            result = packed(given, plain)
            assert (result.ndim == 5) == (out % 16 == 0 and not plain)
            assert relative_error(unblocked(result) if result.ndim == 5 else result, expected) < CLOSE


def test_convolution_of_another_size_is_packed_anew(normal, kind):
    weight, bias = normal(32, 32, 3, 3), normal(32)
    packed = kind(weight, bias, 1, (1, 1))
    for height, width in ((24, 32), (6, 8), (24, 32)):
        x = normal(1, 32, height, width)
        assert relative_error(unblocked(packed(blocked(x))), nn.conv2d(x, weight, bias, 1, 1)) < CLOSE


def test_lean_convolution_keeps_no_packed_weights(normal):
    weight, bias, x = normal(1024, 1024, 3, 3), normal(1024), blocked(normal(1, 1024, 12, 16))
    jt.sync([weight, bias, x])
    kept = {}
    for kind in (LeanConvolution, PackedConvolution):
        before = jt.liveness_info()["lived_vars"]
        convolve = kind(weight, bias, 1, (1, 1))
        convolve(x).sync()
        kept[kind] = jt.liveness_info()["lived_vars"] - before
    assert kept == {LeanConvolution: 0, PackedConvolution: 1}


EVERY_HALF = np.arange(0x7c00, dtype=np.uint16).view(np.float16)


def test_weights_are_stored_in_half_where_it_holds_them(normal):
    network = nn.Sequential(conv3x3(32, 32), conv1x1(32, 32))
    exact, _ = (module.weight for module in network)
    exact.assign(jt.array(np.resize(EVERY_HALF, exact.shape).astype(np.float32)))  # subnormal ones, too
    x = blocked(normal(1, 32, 12, 16))
    prepare(network, LeanConvolution)
    expected = network(x).numpy()
    store_half(network)
    prepare(network, LeanConvolution)
    assert [str(module.weight.dtype) for module in network] == ["float16", "float32"]
    assert np.array_equal(network(x).numpy(), expected)


# ---- group norm

@pytest.mark.parametrize("given", ["nothing", "channels", "maps", "both"])
@pytest.mark.parametrize("images, channels, groups, height, width", [
    (2, 64, 32, 9, 12),     # eight groups a block
    (1, 96, 4, 11, 13),     # groups of a block and a half
    (2, 160, 2, 3, 5),      # groups of five blocks
    (1, 16, 16, 24, 32),    # more positions than a chunk
    (2, 32, 1, 1, 1),
])
def test_blocked_group_norm(normal, images, channels, groups, height, width, given):
    x = normal(images, channels, height, width) * 2 + 3
    maps = tuple(normal(1, channels, height, width) for _ in range(2)) if given in ("maps", "both") else None
    pair = tuple(normal(images, channels) for _ in range(2)) if given in ("channels", "both") else None
    in_blocks = maps and tuple(blocked(m) for m in maps)
    for silu in (False, True):
        expected = group_norm_plain(x, groups, 1e-5, maps, pair, silu)
        assert relative_error(unblocked(group_norm(blocked(x), groups, 1e-5, in_blocks, pair, silu)), expected) < CLOSE


def test_blocked_group_norm_with_a_large_mean(normal):
    """Mean 1e4, deviation 1: E[x^2] - E[x]^2 in fp32 would be noise. The mean itself is a float, exact to 5e-4."""
    x = normal(1, 32, 48, 64) + 1e4
    exact = numbers(x).reshape(1, 2, -1)
    exact = (exact - exact.mean(2, keepdims=True)) / np.sqrt(exact.var(2, keepdims=True) + 1e-5)
    error = numbers(unblocked(group_norm(blocked(x), 2, 1e-5))) - exact.reshape(x.shape)
    assert np.abs(error).max() < 2 * np.spacing(np.float32(1e4))


def test_silu_far_from_zero():
    x = np.concatenate([np.linspace(-200, 200, 96), [-87.5, -87, 87, 87.5] * 8]).astype(np.float32).reshape(1, 16, 2, 4)
    ones, zeros = jt.ones((1, 16)), jt.zeros((1, 16))
    normed = numbers(unblocked(group_norm(blocked(jt.array(x)), 1, 1e-5)))
    factor = float(np.ptp(x) / np.ptp(normed))  # so that SiLU sees values from -200 to 200
    result = numbers(unblocked(group_norm(blocked(jt.array(x)), 1, 1e-5, modulation=(ones * factor, zeros), silu=True)))
    u = normed * factor
    expected = u / (1 + np.exp(-u))
    assert np.abs(result - expected).max() < 1e-6 * np.abs(expected).max()


# ---- networks

@pytest.fixture(scope="module")
def unet():
    """Of several widths, with padding: latents of 10 x 13 are no multiple of 4."""
    config = UNetConfig(in_channels=3, num_classes=5, model_channels=32, channel_mult=(1, 2, 3), num_res_blocks=1,
                        attention_resolutions=(2,), head_channels=16, spade_channels=16, norm_groups=8)
    return made_up(UNet(config), 4)


def inputs(images, height, width, classes=5):
    random = np.random.default_rng(2)
    labels = random.integers(0, classes, (images, 2 * height, 2 * width))
    z = random.standard_normal((images, 3, height, width), np.float32)
    return jt.array(z), one_hot_batch(labels, classes)


SCHEDULE, GUIDANCE = Schedule(DiffusionConfig()), Guidance(3.5)


def guided(conditions, z, t=500, guidance=GUIDANCE, schedule=SCHEDULE):
    """The guided prediction as numpy."""
    return guided_denoiser(conditions.predict, schedule, guidance)(z, t).numpy()


@pytest.mark.parametrize("height, width", [(10, 13), (16, 24)])
def test_guided_step(unet, kind, height, width):
    z, mask = inputs(2, height, width)
    expected = guided(ReferenceConditions(unet, mask), z)
    plain = guided(Conditions(unet, mask, height, width), z)
    assert relative_error(plain, expected) < CLOSE
    prepare(unet, kind)
    try:
        fast = Conditions(unet, mask, height, width)
        result = guided(fast, z)
        assert relative_error(result, expected) < CLOSE
        # whatever is kept of the maps, and however the branches run, the numbers are the same
        everything = sum(4 * v.numel() for c in (fast.null, fast.masked) for pair in c for one in pair for v in one)
        for budget in (0, everything // 5, everything // 2, everything):
            some = Conditions(unet, mask, height, width, budget)
            kept = [isinstance(one, tuple) for c in (some.null, some.masked) for pair in c for one in pair]
            assert any(kept) == (budget > 0) and all(kept) == (budget == everything)
            assert np.array_equal(guided(some, z), result)
        assert np.array_equal(guided(Conditions(unet, mask, height, width, joint=True), z), result)
        assert np.array_equal(guided(Conditions(unet, mask, height, width, null=fast.null), z), result)
        assert np.array_equal(guided(Conditions(unet, mask[:1], height, width), z[:1]), result[:1])
    finally:
        prepare(unet, None)
    assert np.array_equal(guided(Conditions(unet, mask, height, width), z), plain)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_guided_step_of_another_recipe(unet, prediction):
    """Rescaled guidance: the fast path, both branches as one batch, the plain one, an image alone."""
    z, mask = inputs(2, 10, 13)
    schedule = Schedule(DiffusionConfig(prediction=prediction))
    guidance = Guidance(3.5, rescale=0.8)
    plain = ReferenceConditions(unet, mask)
    prepare(unet, PackedConvolution)
    try:
        fast, alone = Conditions(unet, mask, 10, 13), Conditions(unet, mask[:1], 10, 13)
        joint = Conditions(unet, mask, 10, 13, joint=True)
        result = guided(fast, z, 500, guidance, schedule)
        assert np.array_equal(guided(joint, z, 500, guidance, schedule), result)
        assert relative_error(guided(alone, z[:1], 500, guidance, schedule), result[:1]) < 1e-6
        assert relative_error(result, guided(plain, z, 500, guidance, schedule)) < CLOSE
    finally:
        prepare(unet, None)
    assert relative_error(result, guided(plain, z)) > 0.01


def test_chain_parity(reference_unet, kind):
    """20 steps at guidance 3.5 on the fast path: the release's numbers, and the plain path's to 1e-4."""
    expected = reference("ddim")
    start, scale = int(expected["start"]), float(expected["guidance"])
    chain = SCHEDULE.respaced("ddim50")
    z = SCHEDULE.add_noise(jt.array(expected["z0"]), jt.array(expected["noise"]), chain[start])
    mask = one_hot_batch(expected["label"], 29)

    def samples(conditions):
        denoise = guided_denoiser(conditions.predict, SCHEDULE, Guidance(scale))
        return [z.numpy() for _, z in ddim(denoise, SCHEDULE, z, chain[:start][::-1])]

    plain = samples(ReferenceConditions(reference_unet, mask))
    prepare(reference_unet, kind)
    try:
        conditions = Conditions(reference_unet, mask, *z.shape[2:])
        conditions.prepare(chain[:start])
        fast = samples(conditions)
    finally:
        prepare(reference_unet, None)
    assert len(fast) == 20
    assert relative_error(fast[-1], plain[-1]) < 1e-4
    assert relative_error(fast[0], expected["sample_first"]) < 1e-4
    assert relative_error(fast[-1], expected["sample_last"]) < 5e-4


@pytest.mark.parametrize("height, width", [(24, 32), (20, 28)])
def test_autoencoder(normal, height, width):
    config = AutoencoderConfig(ch=16, ch_mult=(1, 2, 2), num_res_blocks=1, n_embed=40, norm_groups=4)
    network = made_up(Autoencoder(config), 3)
    x = normal(2, 3, height, width)
    with plain_operators():
        latent = network.encode(x).numpy()
        picture = network.decode(jt.array(latent)).numpy()
    prepare(network, PackedConvolution)
    assert relative_error(network.encode(x), latent) < CLOSE
    assert relative_error(network.decode(jt.array(latent)), picture) < CLOSE


def test_plain_operators_end_with_their_block():
    with pytest.raises(ZeroDivisionError), plain_operators():
        assert not compiled()
        1 / 0  # noqa: B018 - an error inside the block
    assert compiled()


# ---- the noise

def test_noise_is_white_and_its_own():
    noise = draw_noise(3, "lake", 1, (3, 10, 12))
    key = hashlib.sha256(b"3/1/lake").digest()
    expected = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big"))).standard_normal((3, 10, 12), np.float32)
    assert noise.dtype == np.float32 and np.array_equal(noise, expected)
    for other in ((4, "lake", 1), (3, "lakes", 1), (3, "lake", 2)):
        assert (draw_noise(*other, (3, 10, 12)) != noise).any()


# ---- Generator

@pytest.fixture(scope="module")
def picture():
    random = np.random.default_rng(5)
    mask = np.repeat(np.repeat(random.choice([1, 5, 12], (6, 8)), 4, 0), 4, 1)
    return mask, random.integers(0, 256, (24, 32, 3), np.uint8)


def test_generator_takes_the_fast_path_and_can_do_as_the_release_does(picture):
    rounds = [{"guidance": 3.0, "respacing": "ddim20", "start": 4}]
    fast, small, lean, release = (
        Generator.from_checkpoint(device="cpu", **options)
        for options in ({}, {"condition_cache_mb": 0}, {"low_memory": True}, {"reference": True})
    )
    results = [np.asarray(g.infer(*picture, rounds=rounds)).astype(int) for g in (fast, small, lean, release)]
    assert np.array_equal(results[0], results[1])
    # a latent beside the border of two codes may fall to the other side, in places
    assert all(np.abs(results[0] - other).mean() < 0.05 for other in results[2:])
    assert [g.batch_size() for g in (fast, lean)] == [4, 1]
    again = np.asarray(fast.infer(*picture, rounds=rounds, ensemble=[1.0])).astype(int)
    assert np.array_equal(again, results[0])


@pytest.mark.parametrize("free, low", [(10**6, True), (10**9, False), (None, False)])
def test_low_memory_by_what_is_free(monkeypatch, capfd, free, low):
    monkeypatch.setattr("jiidm.generator.available_memory", lambda: free)
    assert Generator.from_checkpoint(device="cpu").batch_size() == (1 if low else 4)
    assert ("low memory" in capfd.readouterr().err) == low
    for chosen in (True, False):
        assert Generator.from_checkpoint(device="cpu", low_memory=chosen).batch_size() == (1 if chosen else 4)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options, words", [
    ({"precision": "fp8"}, ("precision 'fp8'", "auto, fp32 or bf16")),
    ({"precision": "bf16"}, ("precision bf16", "8.0")),
    ({"condition_cache_mb": -1}, ("condition_cache_mb -1", "at least 0")),
])
def test_refused_options(options, words):
    with pytest.raises(InputError) as caught:
        Generator.from_checkpoint(device="cpu", **options)
    for word in words:
        assert word in str(caught.value)


def test_widths_that_fill_no_blocks_stay_plain():
    assert inference_convolution("cpu", "fp32", 24) is None
    assert inference_convolution("cpu", "fp32", 32, 48) is PackedConvolution
    assert inference_convolution("cpu", "fp32", 32, 48, lean=True) is LeanConvolution


def test_the_autoencoder_takes_a_large_batch_in_parts(normal):
    batch, sizes = normal(2 * _AT_A_TIME + 1, 3, 4, 5), []

    def double(x):
        sizes.append(len(x))
        return 2 * x

    assert np.array_equal(_in_parts(double, batch).numpy(), 2 * batch.numpy())
    assert sizes == [_AT_A_TIME, _AT_A_TIME, 1]
