"""The encoder and the decoder of the autoencoder as graphs: `jiidm.models.autoencoder`, layer by layer."""
import numpy as np

from jiidm.export.graph import Graph
from jiidm.models.autoencoder import Autoencoder

PICTURE = ("N", 3, "H", "W")  # in [-1, 1]


def encoder_graph(network: Autoencoder, half: bool) -> Graph:
    """picture -> latents, neither quantised nor rescaled."""
    g = Graph("encoder", dict(network.named_parameters()), half)
    encoder = network.encoder
    h = g.convolution(g.own(g.input("picture", PICTURE)), encoder.conv_in)
    for level in encoder.down:
        h = _level(g, h, level)
    h = g.group_norm(_middle(g, h, encoder.mid), encoder.norm_out)
    z = g.full(g.convolution(g.convolution(h, encoder.conv_out), network.quant_conv))
    g.output(z, "latents", ("N", network.quant_conv.out_channels, "h", "w"))
    return g


def decoder_graph(network: Autoencoder, half: bool) -> Graph:
    """latents -> picture, from the nearest codes."""
    g = Graph("decoder", dict(network.named_parameters()), half)
    decoder = network.decoder
    z = g.input("latents", ("N", network.quant_conv.out_channels, "h", "w"))
    h = g.convolution(g.own(_nearest_codes(g, z, network.quantize.embedding.weight)), network.post_quant_conv)
    h = _middle(g, g.convolution(h, decoder.conv_in), decoder.mid)
    for level in reversed(list(decoder.up)):
        h = _level(g, h, level)
    g.output(g.full(g.convolution(g.group_norm(h, decoder.norm_out), decoder.conv_out)), "picture", PICTURE)
    return g


def _nearest_codes(g, z, codebook):
    """The nearest code at every position of z (N, D, h, w), in float32.

    |z - c|^2 = |z|^2 - 2 z c + |c|^2, whose first term is the same for all codes.
    """
    codes = codebook.numpy()
    k, d = codes.shape
    places = g.node("Transpose", g.reshape(z, (0, d, -1)), perm=[0, 2, 1])  # N, h * w, D
    squares = g.constant((codes.astype(np.float64) ** 2).sum(1), np.float32)
    distance = g.add(g.node("MatMul", places, g.constant(-2 * codes.T, np.float32)), squares)
    index = g.node("ArgMin", distance, axis=2, keepdims=0)
    found = g.node("Transpose", g.node("Gather", g.constant(codes, np.float32), index), perm=[0, 2, 1])
    return g.reshape(found, g.shape(z))


def _middle(g, h, middle):
    h = _resnet_block(g, h, middle.block_1)
    return _resnet_block(g, _attention_block(g, h, middle.attn_1), middle.block_2)


def _level(g, h, level):
    for block in level.block:
        h = _resnet_block(g, h, block)
    if level.downsample is not None:
        h = g.convolution(h, level.downsample.conv)
    if level.upsample is not None:
        h = g.convolution(g.upsample(h), level.upsample.conv)
    return h


def _resnet_block(g, x, block):
    h = g.convolution(g.group_norm(x, block.norm1), block.conv1)
    h = g.convolution(g.group_norm(h, block.norm2), block.conv2)
    return g.add(h, x if block.nin_shortcut is None else g.convolution(x, block.nin_shortcut))


def _attention_block(g, x, block):
    h = g.group_norm(x, block.norm, silu=False)
    q, k, v = (g.convolution(h, layer) for layer in (block.q, block.k, block.v))
    h = g.reshape(g.attention(q, k, v, 1, block.q.out_channels), g.shape(x))
    return g.add(x, g.convolution(h, block.proj_out))
