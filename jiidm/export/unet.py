"""The UNet in its parts as graphs: `jiidm.models.unet`, layer by layer.

`condition` depends on the label map alone, `encode` sees the latents and the timestep, `decode` sees what these two
give. Its inputs are all of their outputs, under the same names.
"""
import numpy as np

from jiidm.data.labels import NO_CLASS
from jiidm.export.graph import INT32, INT64, Graph
from jiidm.models.unet import ResBlock, SpadeResBlock, UNet, timestep_embedding
from jiidm.system.runtime import jt

_EPS = 1e-5  # of all norms


def condition_graph(network: UNet, half: bool, factor: int) -> Graph:
    """labels -> the SPADE maps of all norms of the middle and the decoder.

    Args:
        network: the UNet.
        half: compute in float16.
        factor: pixels a side of a latent position.
    """
    g = Graph("condition", dict(network.named_parameters()), half)
    deepest, classes = network.config.factor, network.config.num_classes
    labels = g.every(g.input("labels", ("N", "H", "W"), INT32), factor, (1, 2))
    if deepest > 1:
        amounts = g.concat([g.constant([0] * 4, np.int64), *_padding(g, labels, 1, deepest)], 0)
        labels = g.node("Pad", labels, amounts, g.constant(NO_CLASS, np.int32))
    numbers = g.constant(np.arange(classes).reshape(1, -1, 1, 1), np.int32)
    pyramid = {}
    for level in range(len(network.config.channel_mult)):
        reduced = g.unsqueeze(g.every(labels, 2**level, (1, 2)), 1)
        pyramid[2**level] = g.cast(g.node("Equal", reduced, numbers), g.dtype)  # one-hot; all zero without a class
    for number, (norm, at) in enumerate(_norms(network)):
        hidden = g.node("Relu", g.convolution(pyramid[at], norm.mlp_shared[0]))
        scale = g.add(g.convolution(hidden, norm.mlp_gamma), g.number(1))
        for name, maps in (("scale", scale), ("shift", g.convolution(hidden, norm.mlp_beta))):
            g.output(maps, f"{name}_{number}", _map_shape(norm, at, "N"), g.dtype)
    return g


def encode_graph(network: UNet, half: bool, timesteps: int) -> Graph:
    """latents, timestep -> the encoder's features, the modulation of the decoder's blocks, and the latents' size.

    Args:
        network: the UNet.
        half: compute in float16.
        timesteps: how many the schedule has.
    """
    g = Graph("encode", dict(network.named_parameters()), half)
    config = network.config
    z = g.input("latents", ("N", config.in_channels, "h", "w"))
    # a table, since the cosine of hundreds of radians has few digits on some GPUs
    table = timestep_embedding(jt.arange(timesteps), config.model_channels).numpy()
    embedding = g.own(g.node("Gather", g.constant(table, np.float32), g.input("timestep", ("T",), INT32)))
    emb = g.linear(g.silu(g.linear(embedding, network.time_embed[0])), network.time_embed[2])
    g.output(g.concat([g.linear(g.silu(emb), b.emb_layers[1]) for b in _spade_blocks(network)], 1), "modulation",
             ("T", sum(_widths(network))), g.dtype)
    g.output(g.shape(z, 2), "size", (2,), INT64)

    h = g.own(z)
    if config.factor > 1:
        below, right = _padding(g, z, 2, config.factor)
        h = g.node("Pad", h, g.concat([g.constant([0] * 6, np.int64), below, right], 0))
    for number, (layers, shape) in enumerate(zip(network.input_blocks, _feature_shapes(network), strict=True)):
        for layer in layers:
            if isinstance(layer, ResBlock):
                h = _res_block(g, h, layer, emb)
            elif hasattr(layer, "qkv"):
                h = _attention_block(g, h, layer)
            else:
                h = g.convolution(h, layer)
        g.output(h, f"feature_{number}", shape, g.dtype)
    return g


def decode_graph(network: UNet, half: bool) -> Graph:
    """All outputs of `encode` and `condition` -> the prediction; the variance is left out, no sampler reads it."""
    g = Graph("decode", dict(network.named_parameters()), half)
    config = network.config
    features = [g.input(f"feature_{i}", shape, g.dtype) for i, shape in enumerate(_feature_shapes(network))]
    widths = _widths(network)
    parts = g.split(g.input("modulation", ("T", sum(widths)), g.dtype), widths, 1)
    size = g.input("size", (2,), INT64)
    maps = [tuple(g.input(f"{name}_{i}", _map_shape(norm, at, "M"), g.dtype) for name in ("scale", "shift"))
            for i, (norm, at) in enumerate(_norms(network))]

    modulations, maps = iter(parts), iter(maps)
    h = features[-1]
    for layers in (network.middle_block, *network.output_blocks):
        if layers is not network.middle_block:
            h = g.concat([h, features.pop()], 1)
        for layer in layers:
            if isinstance(layer, SpadeResBlock):
                h = _spade_block(g, h, layer, next(modulations), next(maps), next(maps))
            else:
                h = _attention_block(g, h, layer)
    h = g.full(g.convolution(g.group_norm(h, network.out[0]), network.out[2], rows=config.in_channels))
    if config.factor > 1:
        h = g.node("Slice", h, g.constant([0, 0], np.int64), size, g.constant([2, 3], np.int64))
    g.output(h, "prediction", ("N", config.in_channels, "h", "w"))
    return g


# -------------------------------------------------------------------------------------------------------------- shapes

def _spade_blocks(network):
    groups = (network.middle_block, *network.output_blocks)
    return [block for group in groups for block in group if isinstance(block, SpadeResBlock)]


def _widths(network):
    """How many numbers modulate each block."""
    return [2 * block.out_norm.channels for block in _spade_blocks(network)]


def _norms(network):
    """Pairs of (SPADE norm, down-sampling factor at it), in the order in which `decode` runs them."""
    factor, found = network.config.factor, []
    for block in _spade_blocks(network):
        found.append((block.in_norm, factor))
        factor //= 1 + block.up
        found.append((block.out_norm, factor))
    return found


def _map_shape(norm, factor, images):
    return images, norm.channels, f"h_{factor}", f"w_{factor}"


def _feature_shapes(network):
    """The shapes of what `encode` gives for each group of layers."""
    channels, factor, shapes = network.config.model_channels, 1, []
    for layers in network.input_blocks:
        for layer in layers:
            if isinstance(layer, ResBlock):
                channels, factor = layer.out_layers[3].out_channels, factor * (1 + layer.down)
        shapes.append(("N", channels, f"h_{factor}", f"w_{factor}"))
    return shapes


def _padding(g, x, axis, factor):
    """How many rows below and columns on the right x needs, two tensors of 1; its height is at `axis`."""
    missing = g.node("Mod", g.node("Neg", g.shape(x, axis, axis + 2)), g.constant(factor, np.int64))
    return g.split(missing, (1, 1), 0)


# -------------------------------------------------------------------------------------------------------------- layers

def _res_block(g, x, block, emb):
    """Residual block of the encoder; `emb` is the time embedding (T, C)."""
    h = g.group_norm(x, block.in_layers[0])
    if block.down:
        h, x = (g.node("AveragePool", v, kernel_shape=[2, 2], strides=[2, 2]) for v in (h, x))
    h = g.convolution(h, block.in_layers[2])
    scale, shift = _modulation(g, g.linear(g.silu(emb), block.emb_layers[1]), block.out_layers[3].out_channels)
    norm = block.out_layers[0]
    weight, bias = (g.weight(v, (-1, 1, 1)) for v in (norm.weight, norm.bias))
    h = g.add(g.mul(g.normalize(h, norm.groups, norm.eps), g.mul(weight, scale)), g.add(g.mul(bias, scale), shift))
    h = g.convolution(g.silu(h), block.out_layers[3])
    return g.add(h, x if block.skip_connection is None else g.convolution(x, block.skip_connection))


def _spade_block(g, x, block, modulation, in_maps, out_maps):
    """Residual block of the middle and the decoder; `in_maps` and `out_maps` are scale and shift of its norms."""
    h = g.silu(_spade_norm(g, x, block.in_norm, in_maps))
    if block.up:
        h, x = g.upsample(h), g.upsample(x)
    h = g.convolution(h, block.in_layers[1])
    scale, shift = _modulation(g, modulation, block.out_norm.channels)
    h = g.silu(g.add(g.mul(_spade_norm(g, h, block.out_norm, out_maps), scale), shift))
    h = g.convolution(h, block.out_layers[2])
    return g.add(h, x if block.skip_connection is None else g.convolution(x, block.skip_connection))


def _spade_norm(g, x, norm, maps):
    return g.add(g.mul(g.normalize(x, norm.groups, _EPS), maps[0]), maps[1])


def _modulation(g, values, channels):
    """1 + scale and shift (T, C, 1, 1) of T, 2C values."""
    scale, shift = g.split(values, (channels, channels), 1)
    return g.add(g.unsqueeze(scale, 2, 3), g.number(1)), g.unsqueeze(shift, 2, 3)


def _attention_block(g, x, block):
    h = g.convolution(g.group_norm(x, block.norm, silu=False), block.qkv)
    size = block.head_channels
    heads = block.proj_out.weight.shape[0] // size
    parts = g.split(g.reshape(h, (0, heads, 3 * size, -1)), (size,) * 3, 2)  # heads first, then q, k, v
    h = g.reshape(g.attention(*parts, heads, size), g.shape(x))
    return g.add(x, g.convolution(h, block.proj_out))
