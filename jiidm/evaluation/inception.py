"""The Inception-v3 of the FID (Szegedy et al. 2016; Heusel et al. 2017), up to its 2048 pooled features.

The network of the published file pt_inception-2015-12-05-6726825d.pth, with its parameter names. It differs from other
Inception-v3 in its pools: averages leave the padding out, and the last block takes the maximum.
"""
from typing import NamedTuple

import numpy as np

from jiidm.evaluation.segformer import bilinear_matrix
from jiidm.system.runtime import jt, nn

SIDE, FEATURES = 299, 2048
_EPS = 1e-3


class _Unit(NamedTuple):
    """A convolution with its norm and ReLU: name, channels in and out, kernel (rows, columns), stride, padding."""

    name: str
    channels: int
    out: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


class _Parameters(nn.Module):
    """Holds parameters under the published names."""


class ConvUnit(nn.Module):
    """Convolution without bias, BatchNorm with the statistics of training, ReLU."""

    def __init__(self, unit):
        self.unit = unit
        self.conv, self.bn = _Parameters(), _Parameters()
        self.conv.weight = jt.init.gauss((unit.out, unit.channels, *unit.kernel), "float32", 0.0, 0.1)
        for name, start in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            setattr(self.bn, name, jt.full((unit.out,), float(start)))

    def execute(self, x):
        scale = self.bn.weight / jt.sqrt(self.bn.running_var + _EPS)
        weight = self.conv.weight * scale.reshape(-1, 1, 1, 1)
        bias = self.bn.bias - self.bn.running_mean * scale
        return nn.relu(nn.conv2d(x, weight, bias, self.unit.stride, self.unit.padding))


def _square(name, channels, out, kernel=1, stride=1, padding=0):
    """A unit with a square kernel."""
    return _Unit(name, channels, out, (kernel, kernel), stride, (padding, padding))


def _row(name, channels, out, length):
    """A unit with a kernel of one row."""
    return _Unit(name, channels, out, (1, length), 1, (0, length // 2))


def _column(name, channels, out, length):
    """A unit with a kernel of one column."""
    return _Unit(name, channels, out, (length, 1), 1, (length // 2, 0))


def _average(x):
    """3x3 average over the pixels within the picture; Jittor's own `count_include_pad` has no effect."""
    rows, columns = (np.minimum(np.arange(side) + 2, side) - np.maximum(np.arange(side) - 1, 0) for side in x.shape[2:])
    return nn.pool(x, 3, "mean", padding=1, stride=1) * jt.array((9 / np.outer(rows, columns)).astype(np.float32))


def _maximum(x):
    """3x3 maximum."""
    return nn.pool(x, 3, "maximum", padding=1, stride=1)


def _shrink(x):
    """3x3 maximum of stride 2."""
    return nn.pool(x, 3, "maximum", stride=2)


class InceptionBlock(nn.Module):
    """Parallel branches, concatenated along the channels.

    Args:
        branches: lists whose entries are applied in order. An entry is a `_Unit`, a pooling function, or a tuple of
            `_Unit`s with the same input, whose outputs are concatenated.
    """

    def __init__(self, branches):
        self._branches = branches
        for branch in branches:
            for entry in branch:
                for unit in entry if type(entry) is tuple else (entry,):
                    if isinstance(unit, _Unit):
                        setattr(self, unit.name, ConvUnit(unit))

    def execute(self, x):
        return jt.concat([self._branch(branch, x) for branch in self._branches], 1)

    def _branch(self, branch, x):
        """The output of one branch."""
        for entry in branch:
            if isinstance(entry, _Unit):
                x = getattr(self, entry.name)(x)
            elif type(entry) is tuple:
                x = jt.concat([getattr(self, unit.name)(x) for unit in entry], 1)
            else:
                x = entry(x)
        return x


def _block_a(channels, pooled):
    """The block of feature maps of 35x35."""
    return InceptionBlock([
        [_square("branch1x1", channels, 64)],
        [_square("branch5x5_1", channels, 48), _square("branch5x5_2", 48, 64, 5, 1, 2)],
        [_square("branch3x3dbl_1", channels, 64), _square("branch3x3dbl_2", 64, 96, 3, 1, 1),
         _square("branch3x3dbl_3", 96, 96, 3, 1, 1)],
        [_average, _square("branch_pool", channels, pooled)],
    ])


def _block_b(channels):
    """The block of feature maps of 35x35 to 17x17."""
    return InceptionBlock([
        [_square("branch3x3", channels, 384, 3, 2)],
        [_square("branch3x3dbl_1", channels, 64), _square("branch3x3dbl_2", 64, 96, 3, 1, 1),
         _square("branch3x3dbl_3", 96, 96, 3, 2)],
        [_shrink],
    ])


def _block_c(channels, inner):
    """The block of feature maps of 17x17."""
    return InceptionBlock([
        [_square("branch1x1", channels, 192)],
        [_square("branch7x7_1", channels, inner), _row("branch7x7_2", inner, inner, 7),
         _column("branch7x7_3", inner, 192, 7)],
        [_square("branch7x7dbl_1", channels, inner), _column("branch7x7dbl_2", inner, inner, 7),
         _row("branch7x7dbl_3", inner, inner, 7), _column("branch7x7dbl_4", inner, inner, 7),
         _row("branch7x7dbl_5", inner, 192, 7)],
        [_average, _square("branch_pool", channels, 192)],
    ])


def _block_d(channels):
    """The block of feature maps of 17x17 to 8x8."""
    return InceptionBlock([
        [_square("branch3x3_1", channels, 192), _square("branch3x3_2", 192, 320, 3, 2)],
        [_square("branch7x7x3_1", channels, 192), _row("branch7x7x3_2", 192, 192, 7),
         _column("branch7x7x3_3", 192, 192, 7), _square("branch7x7x3_4", 192, 192, 3, 2)],
        [_shrink],
    ])


def _block_e(channels, pool):
    """The block of feature maps of 8x8."""
    return InceptionBlock([
        [_square("branch1x1", channels, 320)],
        [_square("branch3x3_1", channels, 384),
         (_row("branch3x3_2a", 384, 384, 3), _column("branch3x3_2b", 384, 384, 3))],
        [_square("branch3x3dbl_1", channels, 448), _square("branch3x3dbl_2", 448, 384, 3, 1, 1),
         (_row("branch3x3dbl_3a", 384, 384, 3), _column("branch3x3dbl_3b", 384, 384, 3))],
        [pool, _square("branch_pool", channels, 192)],
    ])


class Inception(nn.Module):
    """N, 3, 299, 299 in [-1, 1], from `inception_input` -> N, 2048, the features of the FID."""

    def __init__(self):
        self.Conv2d_1a_3x3 = ConvUnit(_square("", 3, 32, 3, 2))
        self.Conv2d_2a_3x3 = ConvUnit(_square("", 32, 32, 3))
        self.Conv2d_2b_3x3 = ConvUnit(_square("", 32, 64, 3, 1, 1))
        self.Conv2d_3b_1x1 = ConvUnit(_square("", 64, 80))
        self.Conv2d_4a_3x3 = ConvUnit(_square("", 80, 192, 3))
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a = _block_b(288)
        self.Mixed_6b, self.Mixed_6c = _block_c(768, 128), _block_c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a = _block_d(768)
        self.Mixed_7b, self.Mixed_7c = _block_e(1280, _average), _block_e(2048, _maximum)

    def execute(self, x):
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = _shrink(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(x))))
        for part in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{part}")(x)
        return x.mean((2, 3))


def inception_input(photo: np.ndarray) -> np.ndarray:
    """Converts H x W x 3 uint8 RGB to 3, 299, 299 float32 in [-1, 1]: bilinear, half-pixel centres, no averaging."""
    rows, columns = (bilinear_matrix(side, SIDE) for side in photo.shape[:2])
    values = np.asarray(photo, np.float32).transpose(2, 0, 1) / np.float32(255)
    return 2 * (rows @ values @ columns.T) - 1
