"""GauGAN and CLADE: what their papers state of the networks and losses, by cases computed by hand or in numpy."""
import dataclasses
import math

import numpy as np
import pytest
from helpers import refused, relative_error

from jiidm.baselines.config import DiscriminatorConfig, GeneratorConfig, check_generator
from jiidm.baselines.cost import multiplications, parameter_count
from jiidm.baselines.discriminator import MultiscaleDiscriminator, halved
from jiidm.baselines.encoder import StyleEncoder, drawn_style, style_input
from jiidm.baselines.generator import LayoutGenerator
from jiidm.baselines.layers import (
    BatchNorm,
    Clade,
    Layout,
    Spade,
    SpectralConvolution,
    normalise_by_batch,
    power_iteration,
    take_statistics,
)
from jiidm.baselines.losses import discriminator_loss, feature_matching, generator_loss, style_divergence
from jiidm.baselines.positions import region_positions
from jiidm.config import ImageConfig
from jiidm.data.labels import NO_CLASS
from jiidm.data.latents import one_hot_batch
from jiidm.system.runtime import jt

pytestmark = pytest.mark.baselines

IMAGE = ImageConfig(64, 48)
SMALL = GeneratorConfig(num_classes=5, ngf=2, upsampling=4, spade_channels=8, style_channels=6, encoder_channels=2,
                        style_size=16)


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def layout(classes, height, width, count=1, seed=0):
    labels = np.random.default_rng(seed).integers(0, classes, (count, height, width), np.uint8)
    labels[:, :2, :3] = NO_CLASS
    positions = np.stack([region_positions(each) for each in labels])
    return Layout(one_hot_batch(labels, classes), jt.array(positions)), labels


# ------------------------------------------------------------------------------------------------- normalisation

@pytest.mark.parametrize("by_batch", [True, False])
def test_spade_with_constant_maps_is_clade(by_batch):
    """With a table behind it, SPADE's convolutions give each class its gamma and beta: what CLADE looks up."""
    classes, channels = 4, 6
    clade, spade = Clade(channels, classes, False), Spade(channels, classes, classes)
    table, shift = values(classes, channels), values(classes, channels, seed=1)
    clade.class_specified_affine.weight.assign(jt.array(table))
    clade.class_specified_affine.bias.assign(jt.array(shift))
    for convolution, centre in ((spade.mlp_shared[0], np.eye(classes)), (spade.mlp_gamma, (table - 1).T),
                                (spade.mlp_beta, shift.T)):
        weight = np.zeros(convolution.weight.shape, np.float32)
        weight[:, :, 1, 1] = centre
        convolution.weight.assign(jt.array(weight))
    for network in (clade, spade):
        normalise_by_batch(network, by_batch)
    x, (where, labels) = jt.array(3 * values(2, channels, 8, 10) + 1), layout(classes, 8, 10, 2)
    expected = clade(x, where)
    assert relative_error(spade(x, where), expected) < 1e-6
    # and both are what the papers write, with statistics over the batch
    normalised = x.numpy().astype(np.float64)
    if by_batch:
        normalised = normalised - normalised.mean((0, 2, 3), keepdims=True)
        normalised /= np.sqrt(normalised.var((0, 2, 3), keepdims=True) + 1e-5)
    else:
        normalised /= math.sqrt(1 + 1e-5)
    known = (labels != NO_CLASS)[..., None]
    safe = np.where(labels == NO_CLASS, 0, labels)
    gamma, beta = (np.where(known, numbers[safe], neutral).transpose(0, 3, 1, 2)
                   for numbers, neutral in ((table, 1), (shift, 0)))
    assert relative_error(expected, normalised * gamma + beta) < 1e-5


def test_positional_encoding_scales_gamma_and_beta_within_a_region():
    clade, (where, _) = Clade(3, 4, True), layout(4, 6, 8)
    affine = clade.class_specified_affine
    plain = [maps.numpy() for maps in affine(where)]
    looked_up = [maps.numpy() for maps in affine(Layout(where.mask, where.positions * 0))]
    for a, b in zip(plain, looked_up, strict=True):
        assert np.array_equal(a, b)  # zero at first
    affine.bias.assign(jt.array(values(4, 3)))
    for layer, weight in ((affine.dist_conv_w, (0.5, -2.0)), (affine.dist_conv_b, (1.5, 0.25))):
        layer.weight.assign(jt.array(np.float32(weight).reshape(1, 2, 1, 1)))
    place = where.positions.numpy()
    gamma, beta = affine(where)
    flat = affine(Layout(where.mask, where.positions * 0))
    assert relative_error(gamma, flat[0].numpy() * (1 + 0.5 * place[:, :1] - 2 * place[:, 1:])) < 1e-6
    assert relative_error(beta, flat[1].numpy() * (1 + 1.5 * place[:, :1] + 0.25 * place[:, 1:])) < 1e-6


def test_positions_are_shares_of_the_distance_from_the_regions_centre():
    labels = np.full((4, 7), 2, np.uint8)
    labels[:, 5] = 1  # a column: no place to the right or left
    labels[:, 6] = 2  # of the class of the first region, but apart from it
    labels[3, 0] = NO_CLASS
    right, below = region_positions(labels)
    assert (right[:, 5:] == 0).all() and right[3, 0] == below[3, 0] == 0
    np.testing.assert_allclose(below[:, 5], [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(below[:, 6], below[:, 5])
    # the first region: 19 pixels, its centre at column 40 / 19 and row 27 / 19
    np.testing.assert_allclose(right[0, :5], (np.arange(5) - 40 / 19) / (40 / 19), atol=1e-6)
    np.testing.assert_allclose(below[:, 1], (np.arange(4) - 27 / 19) / (30 / 19), atol=1e-6)
    assert not region_positions(np.full((3, 5), NO_CLASS, np.uint8)).any()


def test_running_statistics_come_of_the_batches_taken():
    norm, x = BatchNorm(3), 2 * values(2, 3, 4, 5) + 5
    norm.by_batch = True
    norm(jt.array(x)).sync()
    assert (norm.running_mean.numpy() == 0).all()  # executing changes nothing
    take_statistics(norm)
    np.testing.assert_allclose(norm.running_mean.numpy(), 0.1 * x.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(norm.running_var.numpy(), 0.9 + 0.1 * x.var((0, 2, 3), ddof=1), rtol=1e-5)
    norm(jt.array(x)).sync()
    take_statistics(norm, 1)
    norm.by_batch = False
    y = norm(jt.array(x)).numpy()
    np.testing.assert_allclose(y.mean((0, 2, 3)), 0, atol=1e-5)


def test_spectral_normalisation_leaves_a_largest_singular_value_of_one():
    layer = SpectralConvolution(5, 8, 3)
    layer.weight_orig.assign(jt.array(7 * values(8, 5, 3, 3)))
    power_iteration(layer, 200)
    singular = np.linalg.svd(layer.weight().numpy().reshape(8, -1), compute_uv=False)
    assert singular[0] == pytest.approx(1, abs=1e-4) and singular[1] < 0.99
    # scaling a weight does not change its normalised one: no gradient along the weight itself
    weighting = jt.array(values(8, 5, 3, 3, seed=1))
    gradient = jt.grad((layer.weight() * weighting).sum(), layer.weight_orig).numpy()
    assert abs((gradient * layer.weight_orig.numpy()).sum()) < 1e-4 * np.abs(gradient * layer.weight_orig.numpy()).sum()
    fixed = layer.weight().numpy()
    layer.fix()
    layer.weight_u.assign(jt.array(np.eye(8, dtype=np.float32)[0]))
    assert np.array_equal(layer.weight().numpy(), fixed)


# ------------------------------------------------------------------------------------------------------- losses

def test_losses_by_hand():
    real = [[jt.array([1.0, 3.0]), jt.array([2.0, 0.5])], [jt.array([4.0]), jt.array([-1.0])]]
    made = [[jt.array([2.0, 1.0]), jt.array([-3.0, 1.0])], [jt.array([1.0]), jt.array([0.5])]]
    # first scale: max(0, 1 - 2), max(0, 1 - 0.5) and max(0, 1 - 3), max(0, 1 + 1); second: 2 and 1.5
    assert discriminator_loss(real, made).item() == pytest.approx(((0.25 + 1.0) + (2.0 + 1.5)) / 2)
    assert generator_loss(made).item() == pytest.approx(-(-1.0 + 0.5) / 2)
    assert feature_matching(real, made).item() == pytest.approx(((1 + 2) / 2 + 3) / 2)
    assert feature_matching(real, real).item() == 0


def test_feature_matching_teaches_the_made_pictures_only():
    real, made = jt.array([1.0, 3.0]), jt.array([2.0, 1.0])
    score = jt.array([0.0])
    loss = feature_matching([[real, score]], [[made, score]])
    by_real, by_made = (g.numpy() for g in jt.grad(loss, [real, made]))
    assert (by_real == 0).all() and np.allclose(by_made, [0.5, -0.5])


def test_divergence_from_a_standard_normal():
    zero = jt.zeros((3, 4))
    assert style_divergence(zero, zero).item() == 0
    mean, log_variance = values(3, 4), values(3, 4, seed=1)
    variance = np.exp(log_variance.astype(np.float64))
    expected = (0.5 * (mean.astype(np.float64) ** 2 + variance - 1 - log_variance)).sum(1).mean()
    assert style_divergence(jt.array(mean), jt.array(log_variance)).item() == pytest.approx(expected, rel=1e-5)
    noise = values(3, 4, seed=2)
    drawn = drawn_style(jt.array(mean), jt.array(log_variance), jt.array(noise))
    assert relative_error(drawn, mean + np.sqrt(variance) * noise) < 1e-5


# ------------------------------------------------------------------------------------------------------ networks

@pytest.mark.parametrize("norm", ["spade", "clade", "clade_icpe"])
def test_generator(norm):
    """Pictures of the configured size, within -1 and 1, that hang on mask and style; names as published."""
    network = LayoutGenerator(GeneratorConfig(norm, 5, 2, 4, 8, 6), IMAGE)
    normalise_by_batch(network, True)
    for name, parameter in network.named_parameters():
        if name.endswith("weight_orig"):
            parameter.assign(jt.array(values(*parameter.shape)))
        elif name.startswith(("fc", "conv_img", "up_3.norm")) and parameter.ndim > 1:
            parameter.assign(jt.array(0.5 * values(*parameter.shape)))
    (where, _), (other, _) = layout(5, 48, 64, 2), layout(5, 48, 64, 2, seed=1)
    style = jt.array(values(2, 6))
    pictures = network(where, style).numpy()
    assert pictures.shape == (2, 3, 48, 64) and np.abs(pictures).max() <= 1
    assert np.abs(pictures - network(other, style).numpy()).max() > 1e-3
    assert np.abs(pictures - network(where, style + 1).numpy()).max() > 1e-3
    names = {name for name, _ in network.named_parameters()}
    affine = {"spade": "mlp_gamma.weight"}.get(norm, "class_specified_affine.weight")
    assert {"fc.weight", "head_0.norm_0.param_free_norm.running_mean", "G_middle_1.conv_1.bias", "conv_img.weight",
            "up_0.conv_s.weight_orig", "up_3.conv_0.weight_u", "up_2.conv_0.weight_v", f"up_1.norm_s.{affine}"} <= names
    assert "up_0.conv_s.bias" not in names and "head_0.norm_s.mlp_gamma.weight" not in names
    if norm == "spade":
        assert "head_0.norm_0.mlp_shared.0.weight" in names


@pytest.mark.parametrize("doublings, extra", [(5, ()), (6, ()), (7, ("up_4.conv_0.weight_orig",))])
def test_further_doublings(doublings, extra):
    side = 2 ** doublings
    network = LayoutGenerator(GeneratorConfig("clade", 5, 2, doublings, style_channels=0), ImageConfig(side, side))
    assert network(layout(5, side, side)[0]).shape == [1, 3, side, side]
    names = dict(network.named_parameters())
    assert set(extra) <= names.keys() and ("up_4.conv_0.weight_orig" in names) == bool(extra)
    assert names["fc.weight"].shape == [32, 5, 3, 3]  # without a style the mask itself is the first input


@pytest.mark.parametrize("size, count", [(16, 2), (256, 6)])
def test_encoder(size, count):
    network = StyleEncoder(GeneratorConfig(style_channels=6, encoder_channels=2, style_size=size))
    photos = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    mean, log_variance = network(jt.array(style_input(photos, size)))
    assert mean.shape == log_variance.shape == [2, 6]
    names = {name for name, _ in network.named_parameters()}
    assert {f"layer{i}.0.weight_orig" for i in range(1, count + 1)} | {"fc_mu.bias", "fc_var.weight"} <= names
    assert f"layer{count + 1}.0.weight_orig" not in names and "layer1.0.bias" not in names


def test_discriminator_looks_at_two_sizes():
    network = MultiscaleDiscriminator(DiscriminatorConfig(4, 3, 2), 5)
    where, _ = layout(5, 48, 64, 2)
    found = network(where.mask, jt.array(values(2, 3, 48, 64)))
    assert [[each.shape for each in scale] for scale in found] == [
        [[2, 4, 25, 33], [2, 8, 13, 17], [2, 16, 14, 18], [2, 1, 15, 19]],
        [[2, 4, 13, 17], [2, 8, 7, 9], [2, 16, 8, 10], [2, 1, 9, 11]],
    ]
    names = {name for name, _ in network.named_parameters()}
    assert {"discriminator_0.model0.0.weight", "discriminator_1.model1.0.0.weight_orig",
            "discriminator_0.model3.0.bias"} <= names
    other = network(where.mask * 0, jt.array(values(2, 3, 48, 64)))
    assert np.abs(other[0][-1].numpy() - found[0][-1].numpy()).max() > 0


@pytest.mark.parametrize("height, width", [(6, 9), (7, 8)])
def test_halved_takes_means_within_the_picture(height, width):
    x = values(2, 3, height, width)
    rows, columns = (height + 1) // 2, (width + 1) // 2
    expected = np.empty((2, 3, rows, columns))
    for i in range(rows):
        for j in range(columns):
            part = x[:, :, max(0, 2 * i - 1) : 2 * i + 2, max(0, 2 * j - 1) : 2 * j + 2]
            expected[:, :, i, j] = part.mean((2, 3))
    assert relative_error(halved(jt.array(x)), expected) < 1e-6


# -------------------------------------------------------------------------------------------------- papers' table

# Tan et al. 2021, table of the datasets' results: millions of parameters and G multiplications of the generator
TABLE = [
    ("ade20k", 151, ImageConfig(256, 256), 5, (96.5, 181.3), (71.4, 42.2)),
    ("coco-stuff, with an edge channel", 184, ImageConfig(256, 256), 5, (97.5, 191.3), (72.5, 42.4)),
    ("cityscapes, with an edge channel", 36, ImageConfig(512, 256), 6, (93.0, 281.5), (67.9, 75.5)),
]


@pytest.mark.parametrize("name, classes, image, doublings, spade, clade", TABLE)
def test_cost_is_that_of_the_papers_table(name, classes, image, doublings, spade, clade):
    costs = {}
    for norm in ("spade", "clade", "clade_icpe"):
        network = LayoutGenerator(GeneratorConfig(norm, classes, upsampling=doublings, style_channels=0), image)
        where = Layout(*(jt.zeros((1, channels, image.height, image.width)) for channels in (classes, 2)))
        costs[norm] = parameter_count(network) / 1e6, multiplications(network, lambda n=network, w=where: n(w)) / 1e9
    for norm, (parameters, work) in (("spade", spade), ("clade", clade)):
        assert round(costs[norm][0], 1) == pytest.approx(parameters, abs=0.051)
        assert costs[norm][1] == pytest.approx(work, rel=0.005)
    # what positional encoding adds is next to nothing
    assert costs["clade_icpe"][0] - costs["clade"][0] < 2e-4
    assert costs["clade_icpe"][1] < 1.001 * costs["clade"][1]


@pytest.mark.parametrize("change, image, words", [
    ({"norm": "batch"}, IMAGE, ("generator.norm", "clade_icpe")),
    ({"upsampling": 3}, IMAGE, ("generator.upsampling 3",)),
    ({"upsampling": 5}, IMAGE, ("image.height 48", 32)),
    ({"ngf": 1}, IMAGE, ("ngf",)),
    ({"style_size": 100}, IMAGE, ("generator.style_size 100",)),
])
def test_impossible_generators(change, image, words):
    refused(lambda: check_generator(dataclasses.replace(SMALL, **change), image), *words)
