"""GauGAN's image encoder: the style of a photo as a normal distribution (Park et al. 2019, appendix A)."""
import cv2
import numpy as np

from jiidm.baselines.layers import Linear, SpectralConvolution, instance_norm, leaky
from jiidm.data.pictures import from_pixels
from jiidm.system.runtime import jt, nn

_LEAST = 4  # pixels a side before the linear layers
_WIDEST = 8


class StyleEncoder(nn.Module):
    """The encoder: 3x3 convolutions of stride 2 with spectral and instance normalisation (`layer1` ...), down to 4 x 4.

    `config` is a `GeneratorConfig`; for 256 pixels there are six convolutions.
    """

    def __init__(self, config):
        count = (config.style_size // _LEAST).bit_length() - 1
        widths = [3, *(config.encoder_channels * min(2**i, _WIDEST) for i in range(count))]
        self.layers = [f"layer{i}" for i in range(1, count + 1)]
        for name, before, width in zip(self.layers, widths, widths[1:], strict=False):
            setattr(self, name, nn.Sequential(SpectralConvolution(before, width, 3, stride=2, padding=1, bias=False)))
        self.fc_mu = Linear(widths[-1] * _LEAST**2, config.style_channels)
        self.fc_var = Linear(widths[-1] * _LEAST**2, config.style_channels)

    def execute(self, x):
        """N, 3, S, S in [-1, 1] -> mean and logarithm of the variance, both N, style_channels."""
        for name in self.layers:
            x = leaky(instance_norm(getattr(self, name)(x)))
        x = x.reshape(x.shape[0], -1)
        return self.fc_mu(x), self.fc_var(x)


def drawn_style(mean, log_variance, noise):
    """A style from its distribution, by standard normal `noise`; all are N, style_channels."""
    return mean + jt.exp(0.5 * log_variance) * noise


def style_input(photos, size):
    """Photos N, H, W, 3 uint8 -> N, 3, size, size in [-1, 1], bilinear, as the encoder takes them."""
    return from_pixels(np.stack([cv2.resize(photo, (size, size), interpolation=cv2.INTER_LINEAR) for photo in photos]))
