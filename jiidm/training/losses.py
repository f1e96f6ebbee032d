"""Losses of the autoencoder besides the perceptual and the adversarial one."""
from jiidm.config import COLOR_AXES
from jiidm.models.blocks import downsample_average
from jiidm.system.runtime import jt


def quantizer_loss(z, codes):
    """Codebook and commitment loss: mean((sg[codes] - z)^2) + 0.25 mean((codes - sg[z])^2).

    Args:
        z: latents N, D, h, w.
        codes: their nearest codes, of the same shape.
    """
    return ((codes.detach() - z) ** 2).mean() + 0.25 * ((codes - z.detach()) ** 2).mean()


def color_means(x, factor):
    """Means over squares of pixels along three colour axes.

    In RGB the colour differences weigh so little beside the brightness that a short training leaves them out of the
    latents.

    Args:
        x: pictures N, 3, H, W, RGB.
        factor: side of the squares, a power of two.

    Returns:
        A dict of N, H / factor, W / factor, by the names of the axes.
    """
    while factor > 1:
        x, factor = downsample_average(x), factor // 2
    red, green, blue = (x[:, i] for i in range(3))
    return dict(zip(COLOR_AXES, ((red + green + blue) / 3, red - green, (red + green) / 2 - blue), strict=True))


def coarse_loss(x, recon, factor):
    """L1 between the `color_means` of photos and reconstructions, both N, 3, H, W, summed over the axes."""
    return sum(jt.abs(mean).mean() for mean in color_means(x - recon, factor).values())


def anchor_loss(x, z, anchors, factor):
    """L1 between latent channels and four times the colour means of the photos; 4 is the scale that latents take.

    Args:
        x: photos N, 3, H, W.
        z: latents N, D, h, w.
        anchors: for each channel the name of its axis, or "".
        factor: H / h.
    """
    means = color_means(x, factor)
    return sum(jt.abs(z[:, i] - 4 * means[name]).mean() for i, name in enumerate(anchors) if name)


def feature_distance(first, second):
    """Squared distance of features that are scaled to length 1 at each position (Zhang et al. 2018, without weights).

    Args:
        first, second: lists of features N, C, h, w, one a layer.

    Returns:
        The mean over images and positions, summed over the layers.
    """
    def unit(x):
        return x / jt.sqrt((x * x).sum(1, keepdims=True) + 1e-6)

    return sum(((unit(a) - unit(b)) ** 2).sum(1).mean() for a, b in zip(first, second, strict=True))
