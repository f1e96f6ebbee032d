"""Layers that the networks share."""
from fractions import Fraction

from jiidm.kernels.convolution import rounded_convolution
from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.winograd import pays, winograd
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

_FEW = 8  # channels; a tensor core takes as many at a time


class Convolution(nn.Conv):
    """Convolution of N, C, H, W with (before, after) rows and columns of zeros around the input.

    `prepare` makes it ready for inference; see `jiidm.kernels.convolution`.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=(0, 0)):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding[0])
        self.zeros = padding
        self.prepared = None
        self.rounded = False

    def prepare(self, how):
        """From here on computes with how(weight, bias, stride, padding); None is plain again."""
        self.prepared = how and how(self.weight, self.bias, self.stride[0], self.zeros)

    def execute(self, x, plain=False):
        """`plain` asks a prepared convolution for N, C, H, W in fp32, whatever it computes in."""
        if self.prepared is not None:
            return self.prepared(x, plain)
        before, after = self.zeros
        padded = pad_right_below(x, after - before, after - before)
        if self.rounded:
            return rounded_convolution(padded, self.weight, self.bias, self.stride[0], before)
        if self.zeros == (1, 1) and self.stride == (1, 1) and pays(x, self.weight):
            return winograd(x, self.weight) + self.bias.reshape(1, -1, 1, 1)
        return super().execute(padded)


def conv3x3(in_channels, out_channels, stride=1, padding=(1, 1)):
    """3x3 convolution."""
    return Convolution(in_channels, out_channels, 3, stride, padding)


def conv1x1(in_channels, out_channels):
    """1x1 convolution."""
    return Convolution(in_channels, out_channels, 1)


def prepare(network, how):
    """Makes the convolutions of a network whose weights do not change ready for inference; None makes them plain."""
    for module in network.modules():
        if isinstance(module, Convolution | PointwiseConv):
            module.prepare(how)


def round_operands(network):
    """From here on the convolutions of a network in training cast what they take to bfloat16; see
    `rounded_convolution`. Those next to the latents, of few channels, stay fp32: they cost nothing."""
    for module in network.modules():
        if isinstance(module, Convolution | PointwiseConv):
            module.rounded = min(module.weight.shape[:2]) >= _FEW


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
    """Affine GroupNorm with SiLU; other factors and summands (both N, C) may take the place of its own."""

    def __init__(self, channels, groups, eps):
        self.groups = checked_groups(channels, groups)
        self.eps = eps
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x, channels=None, silu=True):
        channels = (self.weight, self.bias) if channels is None else channels
        return group_norm(x, self.groups, self.eps, channels=channels, silu=silu)


class PointwiseConv(nn.Module):
    """1x1 convolution of N, C, T whose weight is stored as out x in x 1 (the naming of published attention blocks)."""

    def __init__(self, in_channels, out_channels):
        bound = in_channels**-0.5
        self.weight = jt.init.uniform((out_channels, in_channels, 1), "float32", -bound, bound)
        self.bias = jt.init.uniform((out_channels,), "float32", -bound, bound)
        self.prepared = None
        self.rounded = False

    def prepare(self, how):
        """As `Convolution.prepare`."""
        self.prepared = how and how(self.weight.unsqueeze(3), self.bias, 1, (0, 0))

    def execute(self, x, plain=False):
        """x is N, C, H, W, or what a prepared convolution takes."""
        if self.prepared is not None:
            return self.prepared(x, plain)
        if self.rounded:
            return rounded_convolution(x, self.weight.unsqueeze(3), self.bias, 1, 0)
        return nn.conv2d(x, self.weight.unsqueeze(3), self.bias)


def upsample_nearest(x):
    """N, C, H, W -> N, C, 2H, 2W; blocks of channels stay blocks."""
    n, c, h, w, *block = x.shape
    x = x.reshape(n, c, h, 1, w, 1, *block).broadcast((n, c, h, 2, w, 2, *block))
    return x.reshape(n, c, 2 * h, 2 * w, *block)


def downsample_average(x):
    """N, C, 2H, 2W -> N, C, H, W; blocks of channels stay blocks."""
    n, c, h, w, *block = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2, *block).mean((3, 5))


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
