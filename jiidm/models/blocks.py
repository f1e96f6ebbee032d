"""Layers that the networks share."""
from fractions import Fraction

from jiidm.kernels.convolution import rounded_convolution
from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.layout import BLOCK, blocks_available, from_blocks, to_blocks
from jiidm.kernels.pointwise import pointwise
from jiidm.kernels.winograd import winograd
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

_FEW = 8  # channels; a tensor core works on that many at a time


class Convolution(nn.Conv):
    """Convolution of N, C, H, W with (before, after) rows and columns of zeros around the input.

    After `prepare` or `use_blocks` it may take and give blocks of channels, N, C/16, H, W, 16 (see
    `jiidm.kernels.layout`). With `plain` it always gives N, C, H, W: for what is not a norm, a convolution or a sum.
    """

    prepared = None  # what `prepare` made of it
    blocked = False  # see `use_blocks`
    rounded = False  # see `round_operands`

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=(0, 0), plain=False):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding[0])
        self.zeros, self.plain = padding, plain

    def execute(self, x):
        if self.prepared is not None:
            return self.prepared(x, self.plain)
        if self.computes_in_blocks():
            return self._in_blocks(x)
        before, after = self.zeros
        padded = pad_right_below(x, after - before, after - before)
        if self.rounded:
            return rounded_convolution(padded, self.weight, self.bias, self.stride[0], before)
        return super().execute(padded)

    def computes_in_blocks(self):
        """Whether the result is in blocks now, unless it is `plain`, by the kernels that have gradients."""
        return self.prepared is None and self.blocked and blocks_available()

    def _in_blocks(self, x):
        if self.zeros == (1, 1) and self.stride == (1, 1):
            y = winograd(x if x.ndim == 5 else to_blocks(x), self.weight, self.bias)
        elif self.kernel_size == (1, 1) and x.ndim == 5 and self.out_channels % BLOCK == 0:
            y = pointwise(x, self.weight.reshape(self.out_channels, self.in_channels), self.bias)
        else:
            before, after = self.zeros
            x = from_blocks(x, self.in_channels) if x.ndim == 5 else x
            y = to_blocks(super().execute(pad_right_below(x, after - before, after - before)))
        return from_blocks(y, self.out_channels) if self.plain else y


class PointwiseConv(nn.Module):
    """1x1 convolution of N, C, H, W whose weight is stored as out x in x 1, as in published attention blocks.

    `plain` is that of `Convolution`.
    """

    prepared = None
    blocked = False
    rounded = False

    def __init__(self, in_channels, out_channels, plain=False):
        bound = in_channels**-0.5
        self.weight = jt.init.uniform((out_channels, in_channels, 1), "float32", -bound, bound)
        self.bias = jt.init.uniform((out_channels,), "float32", -bound, bound)
        self.plain = plain

    def execute(self, x):
        if self.prepared is not None:
            return self.prepared(x, self.plain)
        if self.blocked and blocks_available():
            y = pointwise(x if x.ndim == 5 else to_blocks(x), self.weight.squeeze(2), self.bias)
            return from_blocks(y, self.weight.shape[0]) if self.plain else y
        if self.rounded:
            return rounded_convolution(x, self.weight.unsqueeze(3), self.bias, 1, 0)
        return nn.conv2d(x, self.weight.unsqueeze(3), self.bias)


def conv3x3(in_channels, out_channels, stride=1, padding=(1, 1), plain=False):
    """3x3 convolution."""
    return Convolution(in_channels, out_channels, 3, stride, padding, plain)


def conv1x1(in_channels, out_channels, plain=False):
    """1x1 convolution."""
    return Convolution(in_channels, out_channels, 1, plain=plain)


def prepare(network, how):
    """Replaces the convolutions of a network whose weights no longer change by faster ones.

    Args:
        network: any module.
        how: (weight, bias, stride, padding) -> (x, plain) -> result, such as `PackedConvolution`; None undoes it.
    """
    for module in network.modules():
        if isinstance(module, Convolution):
            module.prepared = how and how(module.weight, module.bias, module.stride[0], module.zeros)
        elif isinstance(module, PointwiseConv):
            module.prepared = how and how(module.weight.unsqueeze(3), module.bias, 1, (0, 0))


def store_half(network):
    """Stores the convolutions' weights of a network in float16 where it holds them exactly, as files of weights do.

    Only `LeanConvolution` computes with them, in fp32.
    """
    for module in network.modules():
        if isinstance(module, Convolution | PointwiseConv):
            with jt.no_grad():
                half = module.weight.float16()
                half.sync()  # computed now: until then the fp32 weight stays in memory
                if (half.float32() == module.weight).all().item():
                    module.weight.assign(half)
    jt.gc()


def use_blocks(network, *widths):
    """Makes the convolutions of a network compute in blocks of channels on the CPU, if they fill the blocks.

    Args:
        network: any module.
        widths: channels of the tensors between the convolutions.
    """
    for module in network.modules():
        if isinstance(module, Convolution | PointwiseConv):
            module.blocked = not any(width % BLOCK for width in widths)


def round_operands(network):
    """Makes the convolutions of a network in training cast their operands to bfloat16 (see `rounded_convolution`).

    Those next to the latents, with few channels, stay fp32: they cost nothing.
    """
    for module in network.modules():
        if isinstance(module, Convolution | PointwiseConv):
            module.blocked = False
            module.rounded = min(module.weight.shape[:2]) >= _FEW


def zero_init(module):
    """Sets all parameters of a module to zero and returns it: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        parameter.assign(jt.zeros(parameter.shape))
    return module


def check_groups(channels, groups):
    """Returns the number of groups; raises InputError unless it divides the channels."""
    if groups < 1 or channels % groups:
        raise InputError(f"norm_groups {groups}: expected a divisor of {channels}, the channels of a layer")
    return groups


class GroupNorm(nn.Module):
    """Affine GroupNorm with SiLU."""

    def __init__(self, channels, groups, eps):
        self.groups = check_groups(channels, groups)
        self.eps = eps
        self.weight = jt.ones((channels,))
        self.bias = jt.zeros((channels,))

    def execute(self, x, modulation=None, silu=True):
        """x is N, C, H, W; modulation is a scale and shift (both N, C) to use in place of its own weight and bias."""
        modulation = (self.weight, self.bias) if modulation is None else modulation
        return group_norm(x, self.groups, self.eps, modulation=modulation, silu=silu)


def upsample_nearest(x):
    """N, C, H, W -> N, C, 2H, 2W; blocks of channels (a fifth axis) are kept."""
    n, c, h, w, *block = x.shape
    x = x.reshape(n, c, h, 1, w, 1, *block).broadcast((n, c, h, 2, w, 2, *block))
    return x.reshape(n, c, 2 * h, 2 * w, *block)


def downsample_average(x):
    """N, C, 2H, 2W -> N, C, H, W; blocks of channels (a fifth axis) are kept."""
    n, c, h, w, *block = x.shape
    mean = x.reshape(n, c, h // 2, 2, w // 2, 2, *block).mean((3, 5))
    return mean if mean.dtype == x.dtype else mean.cast(x.dtype)  # of bfloat16 it is fp32


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
    """Pads N, C, H, W with `right` columns and `below` rows of zeros."""
    n, c, h, w = x.shape
    if not (right or below):
        return x
    return x.reindex([n, c, h + below, w + right], ["i0", "i1", "i2", "i3"])
