"""EfficientNet-Lite 0, 1 and 2 as fixed features of photos (Tan & Le 2019; lite: the variants for phones).

An inverted bottleneck is a 1x1 expansion, a depthwise convolution and a linear 1x1 projection, with a skip where the
shapes agree. Lite means ReLU6, no squeeze-and-excitation, and a stem (32) and a head (1280) of fixed width. BatchNorm
is folded into the convolutions. Padding is TensorFlow's SAME: with it ImageNet's classifier gives landscape photos 0.72
of its probability in the classes of landscapes, with symmetric padding 0.67 (lite0).
"""
import math
from typing import NamedTuple

import numpy as np

from jiidm.system.runtime import jt, nn

BATCH_NORM_EPS = 1e-3
STEM, HEAD = 32, 1280
VARIANTS = {"lite0": (1.0, 1.0), "lite1": (1.0, 1.1), "lite2": (1.1, 1.2)}  # multipliers of width and depth


class _Stage(NamedTuple):
    """A stage of EfficientNet-B0 (table 1): blocks, channels, expansion, kernel, stride of the first block."""

    blocks: int
    channels: int
    expansion: int
    kernel: int
    stride: int


_STAGES = (
    _Stage(1, 16, 1, 3, 1), _Stage(2, 24, 6, 3, 2), _Stage(2, 40, 6, 5, 2), _Stage(3, 80, 6, 3, 2),
    _Stage(3, 112, 6, 5, 1), _Stage(4, 192, 6, 5, 2), _Stage(1, 320, 6, 3, 1),
)
STAGES = len(_STAGES)


class Convolution(NamedTuple):
    """One convolution with its norm: names in the published files and the shape of its weight."""

    name: str
    norm: str
    shape: tuple[int, int, int, int]
    stride: int = 1


class Block(NamedTuple):
    """An inverted bottleneck; `expand` is None in the first stage."""

    expand: Convolution | None
    depthwise: Convolution
    project: Convolution
    skip: bool


def scaled_channels(channels, width):
    """Returns `channels` times the width multiplier, to the nearest multiple of 8, at most 10 % below."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def blocks_of(variant):
    """Returns the list of the stages of "lite0", "lite1" or "lite2", each a list of `Block`."""
    width, depth = VARIANTS[variant]
    before, number, stages = STEM, 0, []
    for place, stage in enumerate(_STAGES):
        # the lite variants leave the depth of the first and the last stage as it is
        repeats = stage.blocks if place in (0, STAGES - 1) else math.ceil(depth * stage.blocks)
        out, stages = scaled_channels(stage.channels, width), [*stages, []]
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            name, wide = f"_blocks.{number}.", before * stage.expansion
            expand = Convolution(f"{name}_expand_conv", f"{name}_bn0", (wide, before, 1, 1))
            stages[-1].append(Block(
                expand if stage.expansion > 1 else None,
                Convolution(f"{name}_depthwise_conv", f"{name}_bn1", (wide, 1, stage.kernel, stage.kernel), stride),
                Convolution(f"{name}_project_conv", f"{name}_bn2", (out, wide, 1, 1)),
                stride == 1 and before == out,
            ))
            before, number = out, number + 1
    return stages


def channels_of(variant):
    """Returns the channels after the stem, after each of the seven stages, and after the head."""
    return (STEM, *(stage[-1].project.shape[0] for stage in blocks_of(variant)), HEAD)


class EfficientNetLite:
    """The network up to its pooled features; its weights do not learn.

    `jiidm.foreign.efficientnet.load_efficientnet` reads them.
    """

    def __init__(self, variant, folded):
        """Builds the network.

        Args:
            variant: "lite0", "lite1" or "lite2".
            folded: {convolution's name: (weight, bias)}, float32 arrays with the norms folded in.
        """
        self.variant, self.stages, self.channels = variant, blocks_of(variant), channels_of(variant)
        self.stem = Convolution("_conv_stem", "_bn0", (STEM, 3, 3, 3), 2)
        self.head = Convolution("_conv_head", "_bn1", (HEAD, self.channels[-2], 1, 1))
        self._weights = {c.name: tuple(jt.array(values).stop_grad() for values in folded[c.name])
                         for c in convolutions(variant)}

    def features(self, x, taps):
        """Returns the outputs of some stages; gradients flow to `x`.

        Args:
            x: N, 3, H, W photos in [-1, 1], RGB.
            taps: numbers of stages in ascending order: 0 is the stem (at 1/2 of the size), 1 to 7 the stages (at 1/2,
                1/4, 1/8, 1/16, 1/16, 1/32, 1/32), 8 the head (at 1/32). No later stage is computed.

        Returns:
            A list of N, C, h, w, one for each tap; C is `channels[tap]`.
        """
        found = []
        for number, stage in enumerate([None, *self.stages, None]):
            if number > max(taps):
                break
            if number == 0:
                x = nn.relu6(self._convolve((x * 127.5 + 0.5) / 128, self.stem))  # (pixel - 127) / 128
            elif number > STAGES:
                x = nn.relu6(self._convolve(x, self.head))
            else:
                for block in stage:
                    x = self._block(x, block)
            if number in taps:
                found.append(x)
        return found

    def pooled(self, x):
        """Returns the N, 1280 features that ImageNet's classes are told from; `x` as in `features`."""
        return self.features(x, (STAGES + 1,))[0].mean((2, 3))

    def _block(self, x, block):
        inner = x if block.expand is None else nn.relu6(self._convolve(x, block.expand))
        inner = nn.relu6(self._convolve(inner, block.depthwise))
        inner = self._convolve(inner, block.project)
        return x + inner if block.skip else inner

    def _convolve(self, x, convolution):
        weight, bias = self._weights[convolution.name]
        groups = x.shape[1] // weight.shape[1]
        x, padding = _padded(x, weight.shape[2], convolution.stride)
        return nn.conv2d(x, weight, bias, convolution.stride, padding, 1, groups)


def convolutions(variant):
    """Returns all `Convolution` of a variant, from the stem to the head."""
    found = [Convolution("_conv_stem", "_bn0", (STEM, 3, 3, 3), 2)]
    for stage in blocks_of(variant):
        for block in stage:
            found += [c for c in (block.expand, block.depthwise, block.project) if c]
    return [*found, Convolution("_conv_head", "_bn1", (HEAD, channels_of(variant)[-2], 1, 1))]


def fold(weight, scale, shift, mean, variance):
    """Returns (weight, bias) of a convolution followed by BatchNorm with fixed statistics, as one convolution.

    Args:
        weight: O, I, k, k.
        scale, shift, mean, variance: O each, of the norm.
    """
    factor = np.asarray(scale, np.float64) / np.sqrt(np.asarray(variance, np.float64) + BATCH_NORM_EPS)
    bias = shift - mean * factor
    return np.float32(weight * factor[:, None, None, None]), np.float32(bias)


def _padded(x, kernel, stride):
    """Pads as TensorFlow's SAME does: the odd pixel comes after. Returns (x, what is left for the convolution)."""
    n, c, h, w = x.shape
    total = [max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in (h, w)]
    before = [side // 2 for side in total]
    if all(side % 2 == 0 for side in total):
        return x, tuple(before)
    shape = [n, c, h + total[0], w + total[1]]
    return x.reindex(shape, ["i0", "i1", f"i2-{before[0]}", f"i3-{before[1]}"]), (0, 0)
