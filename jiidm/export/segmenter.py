"""The segmenter as a graph, layer by layer as `jiidm.evaluation.segformer`, from a picture to labels."""
import numpy as np

from jiidm.evaluation.segformer import MEAN, STD, Segformer
from jiidm.export.graph import INT32, INT64, Graph


def segmenter_graph(network: Segformer, half: bool) -> Graph:
    """picture, size -> the logits at 1/4 of the picture's size, and the labels at `size`, a height and a width."""
    g = Graph("segmenter", dict(network.named_parameters()), half)
    picture = g.input("picture", ("N", 3, "H", "W"))
    size = g.cast(g.input("size", (2,), INT32), INT64)
    # from [-1, 1] to 0..255, then as `normalised`
    scale, shift = (np.float64(v).reshape(1, -1, 1, 1) for v in (127.5 / np.array(STD), (127.5 - np.array(MEAN)) / STD))
    x = g.own(g.add(g.mul(picture, g.constant(scale, np.float32)), g.constant(shift, np.float32)))
    encoder, stages = network.encoder, []
    for embedding, blocks, norm in zip(encoder.patch_embeddings, encoder.block, encoder.layer_norm, strict=True):
        x = _layer_norm(g, g.convolution(x, embedding.proj), embedding.layer_norm)
        for block in blocks:
            x = g.add(x, _attention(g, _layer_norm(g, x, block.layer_norm_1), block.attention))
            x = g.add(x, _mix_ffn(g, _layer_norm(g, x, block.layer_norm_2), block.mlp))
        x = _layer_norm(g, x, norm)
        stages.append(x)
    head = network.decode_head
    sides = g.shape(stages[0], 2)
    parts = [_resize(g, g.full(g.convolution(x, linear)), sides) if number else g.full(g.convolution(x, linear))
             for number, (x, linear) in enumerate(zip(stages, head.linear_c, strict=True))]
    fused = g.convolution(g.own(g.concat(parts[::-1], 1)), head.linear_fuse)
    norm = head.batch_norm
    fused = g.node("BatchNormalization", g.full(fused), *(
        g.constant(v.numpy()) for v in (norm.weight, norm.bias, norm.running_mean, norm.running_var)), epsilon=norm.eps)
    logits = g.full(g.convolution(g.own(g.node("Relu", fused)), head.classifier))
    g.output(logits, "logits", ("N", head.classifier.weight.shape[0], "H/4", "W/4"))
    labels = g.node("ArgMax", _resize(g, logits, size), axis=1, keepdims=0)
    g.output(g.cast(labels, INT32), "labels", ("N", "height", "width"), INT32)
    return g


def _layer_norm(g, x, layer):
    """LayerNorm over the channels, its statistics in float32."""
    x = g.full(x)
    centred = g.node("Sub", x, g.node("ReduceMean", x, axes=[1]))
    variance = g.node("ReduceMean", g.mul(centred, centred), axes=[1])
    h = g.own(g.node("Div", centred, g.node("Sqrt", g.add(variance, g.constant(layer.eps, np.float32)))))
    return g.add(g.mul(h, g.weight(layer.weight, (-1, 1, 1))), g.weight(layer.bias, (-1, 1, 1)))


def _attention(g, x, layer):
    reduced = _layer_norm(g, g.convolution(x, layer.sr), layer.layer_norm) if layer.ratio > 1 else x
    q, k, v = g.convolution(x, layer.query), g.convolution(reduced, layer.key), g.convolution(reduced, layer.value)
    size = layer.query.weight.shape[0] // layer.heads
    return g.convolution(g.reshape(g.attention(q, k, v, layer.heads, size), g.shape(x)), layer.dense)


def _mix_ffn(g, x, layer):
    h = g.convolution(x, layer.dense1)
    h = g.convolution(h, layer.dwconv, groups=layer.dwconv.weight.shape[0], padding=1)
    return g.convolution(_gelu(g, h), layer.dense2)


def _gelu(g, x):
    """0.5 x (1 + erf(x / sqrt 2))."""
    erf = g.node("Erf", g.mul(x, g.number(0.5**0.5)))
    return g.mul(g.mul(x, g.number(0.5)), g.add(erf, g.number(1)))


def _resize(g, x, size):
    """x (float32) at another height and width, bilinearly with half-pixel centres."""
    sizes = g.concat([g.shape(x, 0, 2), size], 0)
    return g.node("Resize", x, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
