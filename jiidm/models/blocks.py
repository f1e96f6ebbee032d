"""Layers that the networks share."""
from fractions import Fraction

from jiidm.files import InputError
from jiidm.kernels.group_norm import group_norm
from jiidm.runtime import jt, nn


def conv3x3(in_channels, out_channels, stride=1, padding=1):
    """3x3 convolution."""
    return nn.Conv(in_channels, out_channels, 3, stride=stride, padding=padding)


def conv1x1(in_channels, out_channels):
    """1x1 convolution."""
    return nn.Conv(in_channels, out_channels, 1)


def zeroed(module):
    """The module with all its parameters set to zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        parameter.assign(jt.zeros(parameter.shape))
    return module


def checked_groups(channels, groups):
    """The number of groups; raises InputError unless they divide the channels evenly."""
    if groups < 1 or channels % groups:
        raise InputError(f"norm_groups {groups}: expected a divisor of {channels}, the channels of a layer")
    return groups


class GroupNorm(nn.Module):
    """Affine GroupNorm with SiLU and, by choice, a modulation h * (1 + scale) + shift (both N, C) before the SiLU."""

    def __init__(self, channels, groups, eps):
        self.groups = checked_groups(channels, groups)
        self.eps = eps
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x, scale=None, shift=None, silu=True):
        weight, bias = self.weight, self.bias
        if scale is not None:
            weight, bias = weight * (1 + scale), bias * (1 + scale) + shift
        return group_norm(x, self.groups, self.eps, weight, bias, silu)


class PointwiseConv(nn.Module):
    """1x1 convolution of N, C, T whose weight is stored as out x in x 1 (the naming of published attention blocks)."""

    def __init__(self, in_channels, out_channels):
        bound = in_channels**-0.5
        self.weight = jt.init.uniform((out_channels, in_channels, 1), "float32", -bound, bound)
        self.bias = jt.init.uniform((out_channels,), "float32", -bound, bound)

    def execute(self, x):
        return nn.conv2d(x.unsqueeze(3), self.weight.unsqueeze(3), self.bias).squeeze(3)


def upsample_nearest(x):
    """N, C, H, W -> N, C, 2H, 2W."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h, 1, w, 1).broadcast((n, c, h, 2, w, 2)).reshape(n, c, 2 * h, 2 * w)


def downsample_average(x):
    """N, C, 2H, 2W -> N, C, H, W."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def resize_nearest(x, height, width):
    """N, C, H, W -> N, C, height, width; pixel i of the result is pixel floor(i * size / new size) of x."""
    h, w = x.shape[2:]
    if (h, w) == (height, width):
        return x
    # reduced fractions: Jittor compiles one kernel for each ratio, not for each pair of sizes
    rows, columns = Fraction(h, height), Fraction(w, width)
    return x.reindex([*x.shape[:2], height, width], [
        "i0", "i1", f"i2*{rows.numerator}/{rows.denominator}", f"i3*{columns.numerator}/{columns.denominator}",
    ])


def pad_right_below(x, right, below):
    """N, C, H, W with `right` columns and `below` rows of zeros added."""
    n, c, h, w = x.shape
    if not (right or below):
        return x
    return x.reindex([n, c, h + below, w + right], ["i0", "i1", "i2", "i3"])
