"""SegFormer (Xie et al. 2021): a hierarchical transformer encoder, MiT, and a decoder of linear layers.

All tensors are N, C, H, W: a linear layer over tokens is a 1x1 convolution, LayerNorm is over the channels. Parameters
have the shapes of the public weights, and their names without a prefix; see `jiidm.evaluation.weights`.
"""
from dataclasses import dataclass

import numpy as np

from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn, transposed

_EPS = 1e-6  # of the blocks' norms and a stage's last one
_EMBEDDING_EPS = 1e-5  # of the norms after the strided convolutions
# mean and std of the photos of ImageNet in RGB, 0..255, as the public weights expect
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SegformerConfig:
    """The network, B0 by default. Tuples have one entry a stage.

    Args:
        num_classes: of the label maps.
        embed_dims: channels.
        depths: blocks.
        heads: attention heads.
        sr_ratios: the factor by which keys and values are reduced, a side.
        mlp_ratio: hidden channels of the Mix-FFN, relative to the stage's.
        decoder_dim: channels of the decoder.
        width, height: the size of the pictures that the network sees, in pixels.
    """

    num_classes: int = 29
    embed_dims: tuple[int, ...] = (32, 64, 160, 256)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    decoder_dim: int = 256
    width: int = 512
    height: int = 384


def check_segformer(config: SegformerConfig) -> None:
    """Raises InputError where the numbers of a `SegformerConfig` contradict each other."""
    stages = {len(values) for values in (config.embed_dims, config.depths, config.heads, config.sr_ratios)}
    if stages == {0} or len(stages) != 1:
        raise InputError("segmenter: embed_dims, depths, heads and sr_ratios: expected one number a stage in each")
    for channels, heads in zip(config.embed_dims, config.heads, strict=True):
        if heads < 1 or channels % heads:
            raise InputError(f"segmenter.heads {heads}: expected a divisor of {channels}, the channels of its stage")
    factor = 2 ** (len(config.embed_dims) + 1)
    if min(config.width, config.height) < factor:
        raise InputError(f"segmenter: pictures of {config.width}x{config.height}; expected at least {factor} a side")
    if min(*config.depths, *config.sr_ratios, config.mlp_ratio, config.decoder_dim) < 1:
        raise InputError("segmenter: depths, sr_ratios, mlp_ratio and decoder_dim: expected at least 1")
    if not 2 <= config.num_classes <= 255:
        raise InputError(f"segmenter.num_classes {config.num_classes}: expected 2 to 255")


def normalised(photos: np.ndarray) -> np.ndarray:
    """Converts N, H, W, 3 uint8 RGB to the network's input, N, 3, H, W float32."""
    values = (np.asarray(photos, np.float32) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


class Linear(nn.Module):
    """Linear layer over the channels of N, C, H, W; the weight is out x in, as in the public weights."""

    def __init__(self, in_channels, out_channels, bias=True):
        self.weight = jt.init.gauss((out_channels, in_channels), "float32", 0.0, 0.02)
        self.bias = jt.zeros((out_channels,)) if bias else None

    def execute(self, x):
        return nn.conv2d(x, self.weight.unsqueeze(2).unsqueeze(3), self.bias)


class LayerNorm(nn.Module):
    """LayerNorm over the channels of N, C, H, W."""

    def __init__(self, channels, eps):
        self.eps = eps
        self.weight, self.bias = jt.ones((channels,)), jt.zeros((channels,))

    def execute(self, x):
        centred = x - x.mean(1, keepdims=True)
        scale = jt.sqrt((centred * centred).mean(1, keepdims=True) + self.eps)
        return centred / scale * self.weight.reshape(1, -1, 1, 1) + self.bias.reshape(1, -1, 1, 1)


class DepthwiseConvolution(nn.Module):
    """3x3 convolution of each channel by itself, zero-padded; the weight is C x 1 x 3 x 3."""

    def __init__(self, channels):
        self.weight = jt.init.gauss((channels, 1, 3, 3), "float32", 0.0, (2 / 9) ** 0.5)
        self.bias = jt.zeros((channels,))

    def execute(self, x):
        n, c, h, w = x.shape
        # nine shifted copies, weighted, since Jittor's grouped convolution is far slower on the CPU
        x = x.reindex([n, c, h + 2, w + 2], ["i0", "i1", "i2-1", "i3-1"])
        taps = [x[:, :, i:i + h, j:j + w] * self.weight[:, 0, i, j].reshape(1, -1, 1, 1)
                for i in range(3) for j in range(3)]
        return sum(taps[1:], taps[0]) + self.bias.reshape(1, -1, 1, 1)


class Embedding(nn.Module):
    """Overlapping patch embedding: a strided convolution and a norm."""

    def __init__(self, in_channels, channels, kernel, stride):
        self.proj = nn.Conv(in_channels, channels, kernel, stride, kernel // 2)
        self.layer_norm = LayerNorm(channels, _EMBEDDING_EPS)

    def execute(self, x):
        return self.layer_norm(self.proj(x))


class Attention(nn.Module):
    """Self-attention with keys and values from a feature map reduced by `ratio` a side (section 3.1)."""

    def __init__(self, channels, heads, ratio):
        self.heads, self.ratio = heads, ratio
        self.query, self.key, self.value = (Linear(channels, channels) for _ in range(3))
        self.dense = Linear(channels, channels)
        if ratio > 1:
            self.sr = nn.Conv(channels, channels, ratio, ratio)
            self.layer_norm = LayerNorm(channels, _EMBEDDING_EPS)

    def execute(self, x):
        n, c, h, w = x.shape
        reduced = self.layer_norm(self.sr(x)) if self.ratio > 1 else x
        q, k, v = (part.reshape(n * self.heads, c // self.heads, -1)
                   for part in (self.query(x), self.key(reduced), self.value(reduced)))
        # q (B, D, T), k and v (B, D, S) with S = T / ratio^2
        weight = nn.softmax(nn.matmul(transposed(q * (c // self.heads) ** -0.5, 0, 2, 1), k), dim=-1)
        return self.dense(nn.bmm_transpose(v, weight).reshape(n, c, h, w))


class MixFFN(nn.Module):
    """Two linear layers with a depthwise 3x3 convolution and GELU between them (section 3.1).

    The convolution's zero padding takes the place of a positional encoding.
    """

    def __init__(self, channels, ratio):
        self.dense1 = Linear(channels, ratio * channels)
        self.dwconv = DepthwiseConvolution(ratio * channels)
        self.dense2 = Linear(ratio * channels, channels)

    def execute(self, x):
        return self.dense2(nn.gelu(self.dwconv(self.dense1(x))))


class Block(nn.Module):
    """Attention and Mix-FFN, each with a norm before it and a residual connection."""

    def __init__(self, channels, heads, ratio, mlp_ratio):
        self.layer_norm_1 = LayerNorm(channels, _EPS)
        self.attention = Attention(channels, heads, ratio)
        self.layer_norm_2 = LayerNorm(channels, _EPS)
        self.mlp = MixFFN(channels, mlp_ratio)

    def execute(self, x):
        x = x + self.attention(self.layer_norm_1(x))
        return x + self.mlp(self.layer_norm_2(x))


class Encoder(nn.Module):
    """MiT: N, 3, H, W -> a list of N, C, h, w, one a stage, at 1/4, 1/8, ... of the size, rounded up."""

    def __init__(self, config):
        before = (3, *config.embed_dims[:-1])
        self.patch_embeddings = nn.ModuleList([
            Embedding(b, c, *((7, 4) if i == 0 else (3, 2)))
            for i, (b, c) in enumerate(zip(before, config.embed_dims, strict=True))
        ])
        self.block = nn.ModuleList([
            nn.ModuleList([Block(c, heads, ratio, config.mlp_ratio) for _ in range(depth)])
            for c, depth, heads, ratio in zip(
                config.embed_dims, config.depths, config.heads, config.sr_ratios, strict=True)
        ])
        self.layer_norm = nn.ModuleList([LayerNorm(c, _EPS) for c in config.embed_dims])

    def execute(self, x):
        stages = []
        for embedding, blocks, norm in zip(self.patch_embeddings, self.block, self.layer_norm, strict=True):
            x = embedding(x)
            for block in blocks:
                x = block(x)
            x = norm(x)
            stages.append(x)
        return stages


class Decoder(nn.Module):
    """All-MLP decoder: brings the stages to one width and size, fuses and classifies them.

    Logits are at 1/4 of the picture's size.
    """

    def __init__(self, config, outputs):
        self.linear_c = nn.ModuleList([Linear(c, config.decoder_dim) for c in config.embed_dims])
        self.linear_fuse = Linear(len(config.embed_dims) * config.decoder_dim, config.decoder_dim, bias=False)
        self.batch_norm = nn.BatchNorm(config.decoder_dim, eps=1e-5)
        self.classifier = Linear(config.decoder_dim, outputs)

    def execute(self, stages):
        size = tuple(stages[0].shape[2:])
        parts = [resize_bilinear(linear(x), *size) for linear, x in zip(self.linear_c, stages, strict=True)]
        fused = self.linear_fuse(jt.concat(parts[::-1], 1))
        return self.classifier(nn.relu(self.batch_norm(fused)))


class Segformer(nn.Module):
    """N, 3, H, W of `normalised` photos -> N, outputs, H/4, W/4 of logits (rounded up).

    Args:
        config: a `SegformerConfig`.
        outputs: the number of logits. None: `config.num_classes`.
    """

    def __init__(self, config, outputs=None):
        check_segformer(config)
        self.config = config
        self.encoder = Encoder(config)
        self.decode_head = Decoder(config, outputs or config.num_classes)

    def execute(self, x):
        return self.decode_head(self.encoder(x))

    def with_features(self, x):
        """Returns the logits, and features, N, sum of the stages' channels: each stage averaged over the picture."""
        stages = self.encoder(x)
        return self.decode_head(stages), jt.concat([stage.mean((2, 3)) for stage in stages], 1)


def bilinear_matrix(size: int, new_size: int) -> np.ndarray:
    """Returns the new_size x size float32 matrix that resamples `size` values to `new_size`.

    Half-pixel centres, repeated edges, no averaging when it shrinks: PyTorch's bilinear with align_corners=False.
    """
    places = np.clip((np.arange(new_size) + 0.5) * size / new_size - 0.5, 0, size - 1)
    low = np.minimum(places.astype(int), max(size - 2, 0))
    matrix = np.zeros((new_size, size), np.float64)
    rows = np.arange(new_size)
    matrix[rows, low] += 1 - (places - low)
    matrix[rows, np.minimum(low + 1, size - 1)] += places - low
    return matrix.astype(np.float32)


def resize_bilinear(x, height, width):
    """Resizes N, C, H, W to N, C, height, width by two products with `bilinear_matrix`, which are differentiable."""
    n, c, h, w = x.shape
    if (h, w) == (height, width):
        return x
    columns, rows = jt.array(bilinear_matrix(w, width).T.copy()), jt.array(bilinear_matrix(h, height))
    x = nn.matmul(x.reshape(n * c * h, w), columns).reshape(n * c, h, width)
    return nn.matmul(rows.broadcast((n * c, height, h), [0]), x).reshape(n, c, height, width)
