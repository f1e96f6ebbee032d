"""The networks: names and shapes of the published ones, their numbers, and other sizes."""
import numpy as np
import pytest
from helpers import (
    made_up,
    numbers,
    reference,
    reference_shapes,
    relative_error,
    resident_bytes,
)

from jiidm.config import AutoencoderConfig, UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet, timestep_embedding
from jiidm.system.runtime import jt

# fp32 sums in another order than the reference's
PARITY = 1e-4


@pytest.fixture(autouse=True)
def no_gradients():
    with jt.no_grad():
        yield


def shapes_of(network):
    return {name: list(parameter.shape) for name, parameter in network.named_parameters()}


# ---- the published networks

@pytest.mark.parametrize("kind, network, config", [
    ("unet", UNet, UNetConfig()),
    ("autoencoder", Autoencoder, AutoencoderConfig()),
])
def test_full_size_names_and_shapes(kind, network, config):
    """Jittor computes an initial value when it is asked for: the UNet's 2 GB never exist here."""
    before = resident_bytes()
    assert shapes_of(network(config)) == reference_shapes(kind)
    assert resident_bytes() - before < 100e6


def test_unet_parity(reference_unet):
    expected = reference("unet")
    mask = one_hot_batch(expected["label"], 29)
    x, t = jt.array(expected["x"]), jt.array(expected["t"])
    assert relative_error(reference_unet(x, t, mask), expected["out"]) < PARITY
    assert relative_error(reference_unet(x, t, mask * 0), expected["out_uncond"]) < PARITY


def test_autoencoder_parity(reference_autoencoder):
    expected = reference("autoencoder")
    z = reference_autoencoder.encode(jt.array(expected["image"].astype("float32")))
    assert relative_error(z, expected["z"]) < PARITY
    index = reference_autoencoder.quantize(jt.array(expected["z"]))[1]
    assert np.array_equal(index.numpy(), expected["indices"])
    first = jt.array(expected["z"][:1])
    assert relative_error(reference_autoencoder.decode(first), expected["recon"]) < PARITY
    assert relative_error(reference_autoencoder.decode(first, quantize=False),
                          expected["recon_unquantized"]) < PARITY


def test_timestep_embedding():
    """cos(t f), then sin(t f), with f_i = 10000 ** (-i / half)."""
    t, half = np.array([0, 1, 613, 999]), 16
    angles = t[:, None] * 10000.0 ** (-np.arange(half) / half)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    assert np.abs(numbers(timestep_embedding(jt.array(t.astype("int32")), 2 * half)) - expected).max() < 2e-4


# ---- other sizes

@pytest.fixture(scope="module")
def tiny_unet(tiny_config):
    return made_up(UNet(tiny_config.unet), 2)


@pytest.fixture
def tiny_input():
    """Two latents of 10x13 (the tiny UNet works on multiples of 4), two timesteps, labels of 5 classes."""
    random = np.random.default_rng(0)
    return (random.standard_normal((2, 2, 10, 13)).astype("float32"), np.array([7, 600], "int32"),
            random.integers(0, 5, (2, 10, 13)))


def test_new_unet_predicts_zero(tiny_config, tiny_input):
    z, t, labels = tiny_input
    new = UNet(tiny_config.unet)
    new.eval()
    assert not new(jt.array(z), jt.array(t), one_hot_batch(labels, 5)).numpy().any()


def test_any_size_is_padded_inside(tiny_unet, tiny_input):
    """The same as zeros on the right and below, in the latent and in the mask, and the result cropped."""
    z, t, labels = tiny_input
    out = tiny_unet(jt.array(z), jt.array(t), one_hot_batch(labels, 5))
    assert out.shape == [2, 4, 10, 13]

    padded = np.zeros((2, 2, 12, 16), "float32")
    padded[:, :, :10, :13] = z
    mask = np.zeros((2, 5, 12, 16), "float32")
    mask[:, :, :10, :13] = one_hot_batch(labels, 5).numpy()
    whole = tiny_unet(jt.array(padded), jt.array(t), jt.array(mask))
    assert whole.shape == [2, 4, 12, 16]
    assert relative_error(out, whole[:, :, :10, :13]) < 1e-6


def test_mask_of_the_pictures_size(tiny_unet, tiny_input):
    """A mask at several times the latent's size is reduced by nearest neighbour."""
    z, t, labels = tiny_input
    out = tiny_unet(jt.array(z), jt.array(t), one_hot_batch(labels, 5))
    large = labels.repeat(4, axis=1).repeat(4, axis=2)
    assert relative_error(tiny_unet(jt.array(z), jt.array(t), one_hot_batch(large, 5)), out) < 1e-6


def test_samples_of_a_batch_do_not_mix(tiny_unet, tiny_input):
    z, t, labels = tiny_input
    out = tiny_unet(jt.array(z), jt.array(t), one_hot_batch(labels, 5))
    for i in range(2):
        alone = tiny_unet(jt.array(z[i:i + 1]), jt.array(t[i:i + 1]), one_hot_batch(labels[i:i + 1], 5))
        assert relative_error(alone, out[i:i + 1]) < 1e-5


def test_mask_and_timestep_matter(tiny_unet, tiny_input):
    z, t, labels = tiny_input
    out = tiny_unet(jt.array(z), jt.array(t), one_hot_batch(labels, 5))
    assert relative_error(tiny_unet(jt.array(z), jt.array(t), one_hot_batch((labels + 1) % 5, 5)), out) > 1e-2
    assert relative_error(tiny_unet(jt.array(z), jt.array(t[::-1].copy()), one_hot_batch(labels, 5)), out) > 1e-2


def test_tiny_autoencoder(tiny_config):
    """Shapes at factor 2; the forward pass is encode, quantise and decode."""
    network = made_up(Autoencoder(tiny_config.autoencoder), 2)
    x = jt.array(np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 48)).astype("float32"))
    picture, z, codes, index = network(x)
    assert picture.shape == [2, 3, 32, 48]
    assert z.shape == codes.shape == [2, 2, 16, 24]
    assert index.shape == [2, 16, 24]
    assert relative_error(network.decode(z), picture) < 1e-5
    assert relative_error(network.decode(codes), picture) < 1e-5  # a code is its own nearest code


def test_quantizer_gives_the_nearest_code(tiny_config):
    quantizer = made_up(Autoencoder(tiny_config.autoencoder), 2).quantize
    z = jt.array(np.random.default_rng(1).standard_normal((3, 2, 16, 24)).astype("float32"))
    codes, index = quantizer(z)
    book = numbers(quantizer.embedding.weight)
    distance = ((numbers(z).transpose(0, 2, 3, 1)[..., None, :] - book) ** 2).sum(-1)
    assert np.array_equal(index.numpy(), distance.argmin(-1))
    assert np.array_equal(numbers(codes), book[index.numpy()].transpose(0, 3, 1, 2))
