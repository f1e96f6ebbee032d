"""The generator of GauGAN (Park et al. 2019, appendix A) and, with another normalisation, of CLADE."""
from jiidm.baselines.layers import Clade, Convolution, Layout, Linear, Spade, SpectralConvolution, leaky
from jiidm.models.blocks import upsample_nearest
from jiidm.system.runtime import jt, nn


class ResBlock(nn.Module):
    """SPADE residual block: two 3x3 convolutions, each after normalisation by the layout and LeakyReLU.

    Where the channel count changes, the shortcut is a third normalisation and a 1x1 convolution.
    """

    def __init__(self, in_channels, out_channels, config):
        middle = min(in_channels, out_channels)
        self.norm_0, self.norm_1 = _norm(in_channels, config), _norm(middle, config)
        self.conv_0 = SpectralConvolution(in_channels, middle, 3, padding=1)
        self.conv_1 = SpectralConvolution(middle, out_channels, 3, padding=1)
        self.learned = in_channels != out_channels
        if self.learned:
            self.norm_s = _norm(in_channels, config)
            self.conv_s = SpectralConvolution(in_channels, out_channels, 1, bias=False)

    def execute(self, x, layout):
        """x N, C_in, H, W and a `Layout` of that size -> N, C_out, H, W."""
        shortcut = self.conv_s(self.norm_s(x, layout)) if self.learned else x
        h = self.conv_0(leaky(self.norm_0(x, layout)))
        return shortcut + self.conv_1(leaky(self.norm_1(h, layout)))


def _norm(channels, config):
    if config.norm == "spade":
        return Spade(channels, config.num_classes, config.spade_channels)
    return Clade(channels, config.num_classes, config.positional)


class LayoutGenerator(nn.Module):
    """The generator.

    Args:
        config: a `GeneratorConfig`.
        image: the `ImageConfig` of its pictures.
    """

    def __init__(self, config, image):
        width = config.ngf
        self.config = config
        self.first = image.height // 2**config.upsampling, image.width // 2**config.upsampling
        if config.style_channels:
            self.fc = Linear(config.style_channels, 16 * width * self.first[0] * self.first[1])
        else:
            self.fc = Convolution(config.num_classes, 16 * width, 3, padding=1)
        self.head_0 = ResBlock(16 * width, 16 * width, config)
        self.G_middle_0 = ResBlock(16 * width, 16 * width, config)
        self.G_middle_1 = ResBlock(16 * width, 16 * width, config)
        self.up_0 = ResBlock(16 * width, 8 * width, config)
        self.up_1 = ResBlock(8 * width, 4 * width, config)
        self.up_2 = ResBlock(4 * width, 2 * width, config)
        self.up_3 = ResBlock(2 * width, width, config)
        if config.upsampling > 6:
            self.up_4 = ResBlock(width, width // 2, config)
            width //= 2
        self.conv_img = Convolution(width, 3, 3, padding=1)

    def execute(self, layout, style=None):
        """A `Layout` (N pictures) and the style N, style_channels -> N, 3, H, W in [-1, 1]."""
        layouts, x = {}, self._begin(layout, style)
        doublings = self.config.upsampling
        blocks = [(self.head_0, False), (self.G_middle_0, doublings > 4), (self.G_middle_1, doublings > 5),
                  (self.up_0, True), (self.up_1, True), (self.up_2, True), (self.up_3, True)]
        if doublings > 6:
            blocks.append((self.up_4, True))
        for block, doubled in blocks:
            x = upsample_nearest(x) if doubled else x
            size = tuple(x.shape[2:])
            if size not in layouts:  # one reduction of the mask serves all blocks of a size
                layouts[size] = layout.at(*size)
            x = block(x, layouts[size])
        return jt.tanh(self.conv_img(leaky(x)))

    def _begin(self, layout, style):
        if self.config.style_channels:
            return self.fc(style).reshape(-1, 16 * self.config.ngf, *self.first)
        return self.fc(Layout(layout.mask).at(*self.first).mask)
