"""The denoiser: a guided-diffusion UNet with SPADE normalisation in the middle and the decoder.

The encoder does not see the mask, and the SPADE maps see neither the latents nor the timestep. The network therefore
comes in parts: `condition` (once a mask), `embed` (once a round), `encode` (once a step) and `decode` (once a step and
branch of the guidance). Calling the network runs them all; `Conditions` runs each as often as it is needed.
"""
import math

import numpy as np

from jiidm.kernels import plain_operators
from jiidm.kernels.attention import attention
from jiidm.kernels.group_norm import group_norm
from jiidm.kernels.layout import to_blocks
from jiidm.kernels.winograd import winograd
from jiidm.models.blocks import (
    GroupNorm,
    PointwiseConv,
    check_groups,
    conv1x1,
    conv3x3,
    downsample_average,
    pad_right_below,
    resize_nearest,
    upsample_nearest,
    use_blocks,
    zero_init,
)
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

_EPS = 1e-5
_TURN = 2 * math.pi


def timestep_embedding(t, channels):
    """Sinusoids of the timesteps t (N) -> N, channels: cosines, then sines."""
    half = channels // 2
    frequencies = jt.array(np.exp(-math.log(10000) / half * np.arange(half)).astype(np.float32))
    angles = (t.float32().unsqueeze(1) * frequencies.unsqueeze(0)).float64()
    # below one turn: Jittor's cosine on CUDA is off by 1e-4 at large angles. 2 pi in two parts, since Jittor rounds
    # numbers of Python to fp32
    turns = jt.floor(angles / _TURN)
    angles = (angles - 6.28125 * turns - (_TURN - 6.28125) * turns).float32()
    return jt.concat([jt.cos(angles), jt.sin(angles)], 1)


class ResBlock(nn.Module):
    """Residual block of the encoder, modulated by the time embedding; `down` halves the resolution."""

    def __init__(self, in_channels, out_channels, config, down=False):
        self.down = down
        self.in_layers = nn.Sequential(
            GroupNorm(in_channels, config.norm_groups, _EPS), nn.SiLU(), conv3x3(in_channels, out_channels)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels))
        self.out_layers = nn.Sequential(
            GroupNorm(out_channels, config.norm_groups, _EPS), nn.SiLU(), nn.Identity(),
            zero_init(conv3x3(out_channels, out_channels)),
        )
        self.skip_connection = conv1x1(in_channels, out_channels) if in_channels != out_channels else None

    def modulation(self, emb):
        """Scale and shift (N, C) of the second norm, with its own in them: norm(h) * (1 + scale) + shift."""
        scale, shift = self.emb_layers(emb).chunk(2, dim=1)
        norm = self.out_layers[0]
        return norm.weight * (1 + scale), norm.bias * (1 + scale) + shift

    def execute(self, x, modulation):
        """x is N, C, H, W; modulation is what `modulation` returned."""
        h = self.in_layers[0](x)
        if self.down:
            h, x = downsample_average(h), downsample_average(x)
        h = self.in_layers[2](h)
        h = self.out_layers[3](self.out_layers[2](self.out_layers[0](h, modulation)))
        return h + (self.skip_connection(x) if self.skip_connection is not None else x)


class SpadeNorm(nn.Module):
    """Spatially adaptive normalisation (Park et al. 2019): GroupNorm with gamma and beta as maps made from the mask."""

    def __init__(self, channels, config):
        hidden = config.spade_channels
        self.channels = channels
        self.groups = check_groups(channels, config.norm_groups)
        self.mlp_shared = nn.Sequential(conv3x3(config.num_classes, hidden), nn.ReLU())
        self.mlp_gamma = conv3x3(hidden, channels)
        self.mlp_beta = conv3x3(hidden, channels)

    def maps(self, mask):
        """1 + gamma and beta (N, C, H, W) for a one-hot mask of the same H, W; or one Var, see `group_norm`."""
        shared, gamma, beta = self.mlp_shared[0], self.mlp_gamma, self.mlp_beta
        if gamma.computes_in_blocks():  # both at once: what `blocked_group_norm` has gradients for
            hidden = winograd(to_blocks(mask), shared.weight, shared.bias, relu=True)
            return (winograd(hidden, jt.concat([gamma.weight, beta.weight]), jt.concat([gamma.bias, beta.bias])),)
        hidden = self.mlp_shared(mask)
        return 1 + self.mlp_gamma(hidden), self.mlp_beta(hidden)

    def execute(self, x, condition, modulation=None):
        """SiLU of the normalised x, modulated by the mask's maps, then by the time embedding.

        Args:
            x: N, C, H, W.
            condition: what `maps` returned, or the mask to compute the maps from now.
            modulation: scale and shift (N, C) from the time embedding.
        """
        maps = condition if isinstance(condition, tuple) else self.maps(condition)
        return group_norm(x, self.groups, _EPS, maps, modulation, silu=True)


class SpadeResBlock(nn.Module):
    """Residual block of the middle and the decoder: SPADE norms in place of the affine ones; `up` doubles the size."""

    def __init__(self, in_channels, out_channels, config, up=False):
        self.up = up
        self.in_norm = SpadeNorm(in_channels, config)
        self.in_layers = nn.Sequential(nn.SiLU(), conv3x3(in_channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * out_channels))
        self.out_norm = SpadeNorm(out_channels, config)
        self.out_layers = nn.Sequential(
            nn.SiLU(), nn.Identity(), zero_init(conv3x3(out_channels, out_channels))
        )
        self.skip_connection = conv1x1(in_channels, out_channels) if in_channels != out_channels else None

    def modulation(self, emb):
        """Scale and shift (N, C) of the second norm: norm(h) * (1 + scale) + shift."""
        scale, shift = self.emb_layers(emb).chunk(2, dim=1)
        return 1 + scale, shift

    def execute(self, x, modulation, conditions):
        """x is N, C, H, W; conditions are those of in_norm, at the size of x, and of out_norm, at the result's size."""
        h = self.in_norm(x, conditions[0])
        if self.up:
            h, x = upsample_nearest(h), upsample_nearest(x)
        h = self.in_layers[1](h)
        h = self.out_layers[2](self.out_layers[1](self.out_norm(h, conditions[1], modulation)))
        return h + (self.skip_connection(x) if self.skip_connection is not None else x)


class AttentionBlock(nn.Module):
    """Multi-head attention over all positions, plus the input."""

    def __init__(self, channels, config):
        self.head_channels = config.head_channels
        if self.head_channels < 1 or channels % self.head_channels:
            raise InputError(f"unet.head_channels {self.head_channels}: expected a divisor of {channels}, a width")
        self.norm = GroupNorm(channels, config.norm_groups, _EPS)
        self.qkv = PointwiseConv(channels, 3 * channels, plain=True)
        self.proj_out = zero_init(PointwiseConv(channels, channels))

    def execute(self, x):
        h = self.qkv(self.norm(x, silu=False))
        n, c, height, width = h.shape
        q, k, v = h.reshape(-1, 3 * self.head_channels, height * width).chunk(3, dim=1)  # heads first, then q, k, v
        return x + self.proj_out(attention(q, k, v).reshape(n, c // 3, height, width))


class UNet(nn.Module):
    """The prediction, epsilon or v, and the variance (N, 2 * in_channels, H, W) for latents (N, in_channels, H, W).

    Sides that the deepest level's factor does not divide are padded with zeros on the right and below, and cropped
    again. Parameter names are those of published checkpoints.
    """

    def __init__(self, config):
        self.config = config
        width, blocks = config.model_channels, config.num_res_blocks
        emb = 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))

        def attention_at(factor, channels):
            return [AttentionBlock(channels, config)] if factor in config.attention_resolutions else []

        channels, factor = width, 1
        encoder, skips = [nn.ModuleList([conv3x3(config.in_channels, width)])], [width]
        for level, mult in enumerate(config.channel_mult):
            for _ in range(blocks):
                block = ResBlock(channels, mult * width, config)
                channels = mult * width
                encoder.append(nn.ModuleList([block, *attention_at(factor, channels)]))
                skips.append(channels)
            if level < len(config.channel_mult) - 1:
                encoder.append(nn.ModuleList([ResBlock(channels, channels, config, down=True)]))
                skips.append(channels)
                factor *= 2
        self.input_blocks = nn.ModuleList(encoder)

        self.middle_block = nn.ModuleList([
            SpadeResBlock(channels, channels, config),
            AttentionBlock(channels, config),
            SpadeResBlock(channels, channels, config),
        ])

        decoder = []
        for level, mult in reversed(list(enumerate(config.channel_mult))):
            for i in range(blocks + 1):
                layers = [SpadeResBlock(channels + skips.pop(), mult * width, config)]
                channels = mult * width
                layers += attention_at(factor, channels)
                if level and i == blocks:
                    layers.append(SpadeResBlock(channels, channels, config, up=True))
                    factor //= 2
                decoder.append(nn.ModuleList(layers))
        self.output_blocks = nn.ModuleList(decoder)
        self.out = nn.Sequential(
            GroupNorm(width, config.norm_groups, _EPS), nn.SiLU(),
            zero_init(conv3x3(width, 2 * config.in_channels, plain=True)),
        )

        use_blocks(self, width)
        self._residual = [b for group in self.input_blocks for b in group if isinstance(b, ResBlock)]
        self._spade = [
            b for group in (self.middle_block, *self.output_blocks) for b in group if isinstance(b, SpadeResBlock)
        ]

    def _padding(self, height, width):
        return -width % self.config.factor, -height % self.config.factor

    def embed(self, t):
        """Scale and shift of every residual block (pairs of T, C) for the timesteps t (T)."""
        emb = self.time_embed(timestep_embedding(t, self.config.model_channels))
        return [block.modulation(emb) for block in (*self._residual, *self._spade)]

    def condition(self, mask, height, width, budget=None):
        """What every SPADE norm needs of the masks: pairs, one a block of the middle and the decoder.

        Args:
            mask: one-hot, N, classes, any size.
            height, width: those of the latents.
            budget: bytes for gamma and beta maps (None: no limit). Norms whose maps do not fit get the mask at their
                size, and compute the maps whenever they run.
        """
        right, below = self._padding(height, width)
        if right or below:
            mask = pad_right_below(resize_nearest(mask, height, width), right, below)
            height, width = height + below, width + right
        factors = [2**level for level in range(len(self.config.channel_mult))]
        pyramid = {f: resize_nearest(mask, height // f, width // f) for f in factors}
        left = math.inf if budget is None else budget

        def of(norm, factor):
            nonlocal left
            mask = pyramid[factor]
            size = 8 * norm.channels * mask.shape[0] * mask.shape[2] * mask.shape[3]
            if size > left:
                return mask
            left -= size
            return norm.maps(mask)

        factor, conditions = self.config.factor, []
        for block in self._spade:
            low, factor = factor, factor // (1 + block.up)
            conditions.append((of(block.in_norm, low), of(block.out_norm, factor)))
        return conditions

    def encode(self, z, modulations):
        """The encoder's features, the lowest last, and the modulations that are left for the decoder.

        Args:
            z: latents (N, in_channels, H, W).
            modulations: what `embed` returned for 1 timestep or N.
        """
        modulations = iter(modulations)
        h = pad_right_below(z, *self._padding(*z.shape[2:]))
        features = []
        for layers in self.input_blocks:
            for layer in layers:
                h = layer(h, next(modulations)) if isinstance(layer, ResBlock) else layer(h)
            features.append(h)
        return features, list(modulations)

    def decode(self, encoded, conditions, height, width):
        """Prediction and variance (N, 2 * in_channels, height, width) from what `encode` and `condition` returned."""
        features, modulations = list(encoded[0]), iter(encoded[1])
        conditions = iter(conditions)
        h = features[-1]
        for layers in (self.middle_block, *self.output_blocks):
            if layers is not self.middle_block:
                h = jt.concat([h, features.pop()], 1)
            for layer in layers:
                spade = isinstance(layer, SpadeResBlock)
                h = layer(h, next(modulations), next(conditions)) if spade else layer(h)
        h = self.out[2](self.out[0](h)).float32()
        return h[:, :, :height, :width] if tuple(h.shape[2:]) != (height, width) else h

    def execute(self, z, t, mask):
        """z (N, C, H, W), timesteps t (N), one-hot mask (N, classes, any size; all zero is the null condition)."""
        height, width = z.shape[2:]
        return self.decode(self.encode(z, self.embed(t)), self.condition(mask, height, width), height, width)


class Conditions:
    """A UNet under a batch of masks: what depends on the masks or the timesteps alone is computed once.

    `predict` is what `jiidm.diffusion.guidance` asks for. Both branches share the encoder, which does not see the mask.

    Args:
        network: a `UNet`.
        mask: one-hot, N, classes, any size.
        height, width: those of the latents.
        budget: bytes for gamma and beta maps (None: no limit); the others are computed at every step, with the same
            result.
        null: `null` of other Conditions of this network and size; it serves all masks.
        joint: without a budget, run the decoder on both branches as one batch.
    """

    def __init__(self, network, mask, height, width, budget=None, null=None, joint=False):
        self.network, self.size, self.joint = network, (height, width), joint and budget is None
        self._rows, self._modulations = {}, []
        with jt.no_grad():
            if null is None:  # serves every image: first in the budget
                null = network.condition(jt.zeros((1, mask.shape[1], height, width)), height, width, budget)
            if budget is not None:
                budget = max(0, budget - sum(4 * v.numel() for v in _maps(null)))
            self.null, self.masked = null, network.condition(mask, height, width, budget)
            if self.joint:  # the masks' own maps are then its first half
                self.both, self.masked = _stacked(self.masked, null, mask.shape[0]), None
            jt.sync(_maps(self.null) + _maps(self.both if self.joint else self.masked))

    def prepare(self, timesteps):
        """Computes the time embeddings of all `timesteps` that are to come."""
        with jt.no_grad():
            self._rows = {int(t): k for k, t in enumerate(timesteps)}
            self._modulations = self.network.embed(jt.array(list(self._rows)).int32())
            jt.sync([v for pair in self._modulations for v in pair])

    def predict(self, z, t, conditional=True, null=False):
        """The predictions (N, C, H, W) asked for, as a list: with the masks, then without.

        Args:
            z: latents (N, C, H, W).
            t: their timestep.
            conditional, null: which predictions to compute.
        """
        with jt.no_grad():
            if t not in self._rows:
                self.prepare([t])
            row = slice(self._rows[t], self._rows[t] + 1)
            features, modulations = self.network.encode(z, [(scale[row], shift[row])
                                                            for scale, shift in self._modulations])
            images, channels = z.shape[:2]
            if self.joint and conditional and null:
                features = [jt.concat([f, f]) for f in features]
                output = self.network.decode((features, modulations), self.both, *self.size)
                return [output[:images, :channels], output[images:, :channels]]
            masked = _first(self.both, images) if self.joint else self.masked
            branches = [masked] * conditional + [self.null] * null
            return [self.network.decode((features, modulations), branch, *self.size)[:, :channels]
                    for branch in branches]


class ReferenceConditions:
    """`Conditions` as the authors' release computes them: the whole network for each branch, in Jittor's operators."""

    def __init__(self, network, mask):
        self.network, self.mask = network, mask

    def prepare(self, timesteps):
        """Nothing is computed ahead."""

    def predict(self, z, t, conditional=True, null=False):
        """As `Conditions.predict`."""
        with jt.no_grad(), plain_operators():
            t = jt.full((z.shape[0],), t, "int32")
            masks = [self.mask] * conditional + [jt.zeros_like(self.mask)] * null
            return [self.network(z, t, mask)[:, : z.shape[1]] for mask in masks]


def _maps(conditions):
    """The gamma and beta maps among the conditions."""
    return [v for pair in conditions for one in pair if isinstance(one, tuple) for v in one]


def _first(conditions, images):
    """The conditions of the first images of a batch."""
    return [tuple(tuple(m[:images] for m in maps) for maps in pair) for pair in conditions]


def _stacked(conditions, null, images):
    """The maps of both branches as one batch: those of the masks, then the null condition's once an image."""
    return [
        tuple(
            tuple(jt.concat([m, n.broadcast([images, *n.shape[1:]])]) for m, n in zip(maps, nulls, strict=True))
            for maps, nulls in zip(pair, null_pair, strict=True)
        )
        for pair, null_pair in zip(conditions, null, strict=True)
    ]
