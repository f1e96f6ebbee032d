"""The VQ autoencoder of latent diffusion (Esser et al. 2021; Rombach et al. 2022)."""
from jiidm.kernels.attention import attention
from jiidm.kernels.nearest_code import nearest_code
from jiidm.models.blocks import GroupNorm, conv1x1, conv3x3, upsample_nearest, use_blocks
from jiidm.system.runtime import jt, nn, transposed

_EPS = 1e-6


class ResnetBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv, plus the input."""

    def __init__(self, in_channels, out_channels, groups):
        self.norm1 = GroupNorm(in_channels, groups, _EPS)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, groups, _EPS)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.nin_shortcut = conv1x1(in_channels, out_channels) if in_channels != out_channels else None

    def execute(self, x):
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return h + (self.nin_shortcut(x) if self.nin_shortcut is not None else x)


class AttnBlock(nn.Module):
    """One head of attention over all positions, plus the input."""

    def __init__(self, channels, groups):
        self.norm = GroupNorm(channels, groups, _EPS)
        self.q = conv1x1(channels, channels, plain=True)
        self.k = conv1x1(channels, channels, plain=True)
        self.v = conv1x1(channels, channels, plain=True)
        self.proj_out = conv1x1(channels, channels)

    def execute(self, x):
        h = self.norm(x, silu=False)
        q, k, v = (f(h) for f in (self.q, self.k, self.v))
        h = attention(*(m.reshape(*m.shape[:2], -1) for m in (q, k, v)))
        return x + self.proj_out(h.reshape(q.shape))


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels, groups):
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def execute(self, h):
        return self.block_2(self.attn_1(self.block_1(h)))


class Downsample(nn.Module):
    """3x3 convolution of stride 2 after one column of zeros on the right and one row below."""

    def __init__(self, channels):
        self.conv = conv3x3(channels, channels, stride=2, padding=(0, 1))

    def execute(self, x):
        return self.conv(x)


class Upsample(nn.Module):
    """3x3 convolution after nearest x2."""

    def __init__(self, channels):
        self.conv = conv3x3(channels, channels)

    def execute(self, x):
        return self.conv(upsample_nearest(x))


class Level(nn.Module):
    """The residual blocks of one resolution and the change to the next."""

    def __init__(self, in_channels, out_channels, blocks, groups):
        self.block = nn.ModuleList(
            [ResnetBlock(out_channels if i else in_channels, out_channels, groups) for i in range(blocks)]
        )
        self.downsample = None
        self.upsample = None

    def execute(self, h):
        for block in self.block:
            h = block(h)
        for resample in (self.downsample, self.upsample):
            if resample is not None:
                h = resample(h)
        return h


class Encoder(nn.Module):
    """N, 3, H, W -> N, z_channels, H / f, W / f."""

    def __init__(self, config):
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = conv3x3(3, config.ch)
        self.down = nn.ModuleList([
            Level(w_in, w, config.num_res_blocks, config.norm_groups)
            for w_in, w in zip([config.ch, *widths[:-1]], widths, strict=True)
        ])
        for level in list(self.down)[:-1]:
            level.downsample = Downsample(level.block[-1].conv2.out_channels)
        self.mid = Middle(widths[-1], config.norm_groups)
        self.norm_out = GroupNorm(widths[-1], config.norm_groups, _EPS)
        self.conv_out = conv3x3(widths[-1], config.z_channels, plain=True)
        use_blocks(self, config.ch)

    def execute(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Module):
    """N, z_channels, h, w -> N, 3, f * h, f * w. `up` is stored from the full resolution to the lowest."""

    def __init__(self, config):
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = conv3x3(config.z_channels, widths[-1])
        self.mid = Middle(widths[-1], config.norm_groups)
        self.up = nn.ModuleList([
            Level(w_in, w, config.num_res_blocks + 1, config.norm_groups)
            for w_in, w in zip([*widths[1:], widths[-1]], widths, strict=True)
        ])
        for level in list(self.up)[1:]:
            level.upsample = Upsample(level.block[-1].conv2.out_channels)
        self.norm_out = GroupNorm(widths[0], config.norm_groups, _EPS)
        self.conv_out = conv3x3(widths[0], 3, plain=True)
        use_blocks(self, config.ch)

    def execute(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            h = level(h)
        return self.conv_out(self.norm_out(h))


class Quantizer(nn.Module):
    """A codebook of n_embed vectors."""

    def __init__(self, config):
        self.embedding = nn.Embedding(config.n_embed, config.embed_dim)
        bound = 1 / config.n_embed
        self.embedding.weight.assign(jt.init.uniform((config.n_embed, config.embed_dim), "float32", -bound, bound))

    def execute(self, z):
        """Codes of z (N, D, H, W): the nearest code at every position (N, D, H, W) and its index (N, H, W)."""
        n, d, height, width = z.shape
        index = nearest_code(transposed(z, 0, 2, 3, 1).reshape(-1, d), self.embedding.weight)
        codes = transposed(self.embedding(index).reshape(n, height, width, d), 0, 3, 1, 2)
        return codes, index.reshape(n, height, width)


class Autoencoder(nn.Module):
    """E and D of the paper. E(x) is neither quantised nor rescaled before it is noised; D quantises first."""

    def __init__(self, config):
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config)
        self.quant_conv = conv1x1(config.z_channels, config.embed_dim, plain=True)
        self.post_quant_conv = conv1x1(config.embed_dim, config.z_channels, plain=True)

    def encode(self, x):
        """x (N, 3, H, W in [-1, 1]) -> latent (N, embed_dim, H / f, W / f)."""
        return self.quant_conv(self.encoder(x))

    def decode(self, z, quantize=True):
        """Latent -> picture (N, 3, H, W, about [-1, 1]); from the nearest codes, or from z itself."""
        return self.decoder(self.post_quant_conv(self.quantize(z)[0] if quantize else z))

    def execute(self, x, quantize=True):
        """Reconstruction of x, the latent and its codes; gradients pass the quantiser straight through.

        Without `quantize` the decoder reads the latent itself.
        """
        z = self.encode(x)
        codes, index = self.quantize(z)
        passed = z + (codes - z).detach() if quantize else z
        return self.decoder(self.post_quant_conv(passed)), z, codes, index
