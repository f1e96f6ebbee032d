"""GauGAN's discriminator: PatchGANs on mask and picture at several sizes (Park et al. 2019, appendix A)."""
from jiidm.baselines.layers import Convolution, SpectralConvolution, instance_norm, leaky
from jiidm.system.runtime import jt, nn

_WIDEST = 512


class MultiscaleDiscriminator(nn.Module):
    """PatchGANs at several scales: the first sees the picture itself, each further one half the size.

    Args:
        config: a `DiscriminatorConfig`.
        num_classes: channels of the mask.
    """

    def __init__(self, config, num_classes):
        self.names = [f"discriminator_{i}" for i in range(config.scales)]
        for name in self.names:
            setattr(self, name, PatchDiscriminator(config, num_classes + 3))

    def execute(self, mask, picture):
        """mask N, classes, H, W and picture N, 3, H, W -> for each scale the features N, C, h, w, last the scores."""
        x, found = jt.concat([mask, picture], 1), []
        for number, name in enumerate(self.names):
            x = halved(x) if number else x
            found.append(getattr(self, name)(x))
        return found


class PatchDiscriminator(nn.Module):
    """N, C, H, W -> the features of each layer, last the scores N, 1, h, w."""

    def __init__(self, config, channels):
        width = config.channels
        self.model0 = nn.Sequential(Convolution(channels, width, 4, stride=2, padding=2))
        self.names = ["model0"]
        for i in range(1, config.layers):
            before, width = width, min(2 * width, _WIDEST)
            stride = 2 if i < config.layers - 1 else 1
            layer = SpectralConvolution(before, width, 4, stride, padding=2, bias=False)
            self.names.append(f"model{i}")
            setattr(self, f"model{i}", nn.Sequential(nn.Sequential(layer)))
        self.last = f"model{config.layers}"
        setattr(self, self.last, nn.Sequential(Convolution(width, 1, 4, padding=2)))

    def execute(self, x):
        found = []
        for number, name in enumerate(self.names):
            x = getattr(self, name)(x)
            x = leaky(instance_norm(x) if number else x)
            found.append(x)
        return [*found, getattr(self, self.last)(x)]


def halved(x):
    """Half the size: means over the pixels of 3 x 3 that lie in the picture, with stride 2."""
    for axis in (2, 3):
        size = x.shape[axis]
        count = (size - 1) // 2 + 1
        zeros = jt.zeros([1 if i == axis else side for i, side in enumerate(x.shape)])
        padded = jt.concat([zeros, x, zeros], axis)
        parts = [_every_other(padded, axis, start, count) for start in range(3)]
        inside = jt.array([2.0 if i == 0 or 2 * i + 2 > size else 3.0 for i in range(count)])
        x = (parts[0] + parts[1] + parts[2]) / inside.reshape([count if i == axis else 1 for i in range(4)])
    return x


def _every_other(x, axis, start, count):
    index = [slice(None)] * 4
    index[axis] = slice(start, start + 2 * count - 1, 2)
    return x[tuple(index)]
