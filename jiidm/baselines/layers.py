"""Spectral, batch and instance normalisation, and SPADE and CLADE, which modulate by the label map.

Parameters have the published names. A layer with spectral normalisation keeps its weight as `weight_orig`, and the
vectors of the power iteration as `weight_u` and `weight_v`.
"""
from typing import NamedTuple

import numpy as np

from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.layout import blocks_available, from_blocks, to_blocks
from jiidm.kernels.winograd import winograd
from jiidm.models.blocks import resize_nearest
from jiidm.system.runtime import jt, nn, transposed

EPS = 1e-5  # of batch and instance normalisation
_MOMENTUM = 0.1
_GAIN = 0.02  # of the initial weights, Glorot's
_SLOPE = 0.2


class Layout(NamedTuple):
    """The input of a generator.

    Attributes:
        mask: one-hot, N, classes, H, W; all zero where there is no class.
        positions: within the classes' regions, N, 2, H, W, or None.
    """

    mask: jt.Var
    positions: jt.Var | None = None

    def at(self, height, width):
        """The same at another size, by nearest neighbour."""
        positions = self.positions
        return Layout(resize_nearest(self.mask, height, width),
                      positions if positions is None else resize_nearest(positions, height, width))


def leaky(x):
    """LeakyReLU with the slope 0.2."""
    return nn.leaky_relu(x, _SLOPE)


def instance_norm(x):
    """N, C, H, W with mean 0 and variance 1 in each channel of each picture."""
    return group_norm(x, x.shape[1], EPS)


# ----------------------------------------------------------------------------------------------------- plain layers

class Convolution(nn.Module):
    """Convolution of N, C, H, W with Glorot's initial weights and a bias of zeros (or none)."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        self.stride, self.padding = stride, padding
        self.weight = _glorot((out_channels, in_channels, kernel_size, kernel_size))
        self.bias = jt.zeros((out_channels,)) if bias else None

    def execute(self, x):
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


def convolve(x, weight, bias, stride, padding):
    """The convolution of N, C, H, W; `bias` may be None."""
    if weight.shape[2] == 3 and stride == padding == 1 and blocks_available():
        bias = jt.zeros(weight.shape[:1]) if bias is None else bias
        return from_blocks(winograd(to_blocks(x), weight, bias), weight.shape[0])
    return nn.conv2d(x, weight, bias, stride, padding)


class Linear(nn.Module):
    """Linear layer with Glorot's initial weights: N, C_in -> N, C_out."""

    def __init__(self, in_channels, out_channels):
        self.weight = _glorot((out_channels, in_channels))
        self.bias = jt.zeros((out_channels,))

    def execute(self, x):
        return nn.matmul_transpose(x, self.weight) + self.bias


def _glorot(shape):
    receptive = int(np.prod(shape[2:]))
    std = _GAIN * (2 / (receptive * (shape[0] + shape[1]))) ** 0.5
    return jt.init.gauss(shape, "float32", 0.0, std)


# ------------------------------------------------------------------------------------------ spectral normalisation

class SpectralConvolution(nn.Module):
    """Convolution whose weight, as a matrix of C_out rows, is divided by its largest singular value (Miyato et al.
    2018), which `power_iteration` approximates."""

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias=True):
        self.stride, self.padding = stride, padding
        self.weight_orig = _glorot((out_channels, in_channels, kernel_size, kernel_size))
        self.bias = jt.zeros((out_channels,)) if bias else None
        self.weight_u = _unit(jt.init.gauss((out_channels,), "float32")).stop_grad()
        self.weight_v = _unit(jt.init.gauss((in_channels * kernel_size**2,), "float32")).stop_grad()
        self._fixed = None

    def weight(self):
        """The weight over its largest singular value u W v; u and v count as constants."""
        if self._fixed is not None:
            return self._fixed
        matrix = self.weight_orig.reshape(self.weight_orig.shape[0], -1)
        value = ((matrix * self.weight_v).sum(1) * self.weight_u).sum()
        return self.weight_orig / value

    def improved(self):
        """The vectors u and v after one more step of the power iteration."""
        matrix = self.weight_orig.reshape(self.weight_orig.shape[0], -1)
        v = _unit((matrix * self.weight_u.unsqueeze(1)).sum(0))
        return _unit((matrix * v).sum(1)), v

    def fix(self):
        """Keeps the normalised weight as it is now, for inference."""
        with jt.no_grad():
            self._fixed = self.weight()

    def execute(self, x):
        return convolve(x, self.weight(), self.bias, self.stride, self.padding)


def spectral_layers(network):
    """The `SpectralConvolution`s of a network."""
    return [module for module in network.modules() if isinstance(module, SpectralConvolution)]


def power_iteration(network, times=1):
    """Takes `times` steps of the power iteration in all spectrally normalised layers of `network`."""
    layers = spectral_layers(network)
    for _ in range(times):
        with jt.no_grad():
            found = [layer.improved() for layer in layers]
        for layer, (u, v) in zip(layers, found, strict=True):
            layer.weight_u.update(u)
            layer.weight_v.update(v)
        jt.sync([vector for layer in layers for vector in (layer.weight_u, layer.weight_v)])


def _unit(x):
    return x / jt.maximum(jt.sqrt((x * x).sum()), 1e-12)


# --------------------------------------------------------------------------------------------- batch normalisation

class BatchNorm(nn.Module):
    """Batch normalisation of N, C, H, W without scale and shift of its own; executing it changes nothing that is saved.

    Attributes:
        by_batch: True for mean and variance of the batch, False for the running ones.
        sync: the `SyncMoments` that give those of the whole batch where several processes compute it, else None.
        found: mean and variance of the last batch, for `take_statistics`.
    """

    def __init__(self, channels):
        self.by_batch, self.sync = False, None
        self.running_mean = jt.zeros((channels,)).stop_grad()
        self.running_var = jt.ones((channels,)).stop_grad()
        self.found = None

    def execute(self, x):
        if not self.by_batch:
            mean, var = (v.reshape(1, -1, 1, 1) for v in (self.running_mean, self.running_var))
            return (x - mean) / jt.sqrt(var + EPS)
        mean = x.mean((0, 2, 3), keepdims=True)
        centred = x - mean
        var = (centred * centred).mean((0, 2, 3), keepdims=True)  # E[x^2] - E[x]^2 would cancel
        count = x.numel() // x.shape[1]
        unbiased = count / max(1, count - 1)
        if self.sync is not None:
            mean, var, unbiased = self.sync.moments(mean, var, count)
            centred = x - mean
        self.found = mean.detach().reshape(-1), var.detach().reshape(-1) * unbiased
        return centred / jt.sqrt(var + EPS)


def batch_norms(network):
    """The `BatchNorm`s of a network."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


def normalise_by_batch(network, by_batch, sync=None):
    """Sets `by_batch` and `sync` of all batch norms of a network, see `BatchNorm`."""
    for norm in batch_norms(network):
        norm.by_batch, norm.sync = by_batch, sync


def take_statistics(network, momentum=_MOMENTUM):
    """Moves the running statistics of a network towards those of the last batch, by the fraction `momentum`."""
    for norm in batch_norms(network):
        for running, found in zip((norm.running_mean, norm.running_var), norm.found, strict=True):
            running.update(running + (found - running) * momentum)
        norm.found = None
    jt.sync([v for norm in batch_norms(network) for v in (norm.running_mean, norm.running_var)])


# ------------------------------------------------------------------------------------------ modulation by label map

class Spade(nn.Module):
    """Spatially-adaptive normalisation (Park et al. 2019, eq. 1): batch norm, times 1 + gamma, plus beta; convolutions
    of the mask give both."""

    def __init__(self, channels, num_classes, hidden):
        self.param_free_norm = BatchNorm(channels)
        self.mlp_shared = nn.Sequential(Convolution(num_classes, hidden, 3, padding=1), nn.ReLU())
        self.mlp_gamma = Convolution(hidden, channels, 3, padding=1)
        self.mlp_beta = Convolution(hidden, channels, 3, padding=1)

    def execute(self, x, layout):
        """x N, C, H, W and a `Layout` of that size -> N, C, H, W."""
        features = self.mlp_shared(layout.mask)
        return self.param_free_norm(x) * (1 + self.mlp_gamma(features)) + self.mlp_beta(features)


class Clade(nn.Module):
    """Class-adaptive normalisation (Tan et al. 2021): batch norm, times gamma, plus beta, both looked up by class.

    A pixel without class is only normalised.
    """

    def __init__(self, channels, num_classes, positional):
        self.param_free_norm = BatchNorm(channels)
        self.class_specified_affine = ClassAffine(channels, num_classes, positional)

    def execute(self, x, layout):
        """x N, C, H, W and a `Layout` of that size -> N, C, H, W."""
        gamma, beta = self.class_specified_affine(layout)
        return self.param_free_norm(x) * gamma + beta


class ClassAffine(nn.Module):
    """The table of gamma (`weight`) and beta (`bias`), both classes x C.

    `positional`: they are multiplied by 1 + a linear map of the position within the class's region (ICPE), which is
    zero at first.
    """

    def __init__(self, channels, num_classes, positional):
        self.weight = jt.init.gauss((num_classes, channels), "float32", 1.0, _GAIN)
        self.bias = jt.zeros((num_classes, channels))
        if positional:
            self.dist_conv_w, self.dist_conv_b = (Convolution(2, 1, 1) for _ in range(2))
            for layer in (self.dist_conv_w, self.dist_conv_b):
                layer.weight.assign(jt.zeros(layer.weight.shape))

    def execute(self, layout):
        """A `Layout` -> gamma and beta, N, C, H, W; 1 and 0 where there is no class."""
        # a product with the one-hot mask: the same numbers as a lookup, and quick in both directions
        gamma = 1 + _looked_up(self.weight - 1, layout.mask)
        beta = _looked_up(self.bias, layout.mask)
        if hasattr(self, "dist_conv_w"):
            gamma = gamma * (1 + self.dist_conv_w(layout.positions))
            beta = beta * (1 + self.dist_conv_b(layout.positions))
        return gamma, beta


def _looked_up(table, mask):
    return nn.conv2d(mask, transposed(table, 1, 0).unsqueeze(2).unsqueeze(3))
