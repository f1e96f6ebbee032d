"""What the names and shapes of a network's tensors say: its configuration, and what tensors that one has to have.

The lists of tensors are those of `jiidm.models`, written down once more so that a file can be judged without making
the network of 500 million numbers that it claims to hold; the tests hold the two together.
"""
import dataclasses

from jiidm.system.errors import InputError

# what the shapes do not tell; the rest of both sections they do
ASSUMED = {"autoencoder": ("norm_groups",), "unet": ("head_channels", "norm_groups")}
_MOST_LEVELS = 12


def expected_shapes(kind, section):
    """Names to shapes of all tensors of the network of `kind` with the configuration `section`."""
    return dict(_unet(section) if kind == "unet" else _autoencoder(section))


def infer_section(kind, shapes, base, where):
    """The configuration section of the network of `kind` that has these `shapes` (names to tuples).

    What shapes do not tell is taken from the section `base`. Raises InputError where tensors are missing from which it
    is read, where `base` states another value (one that is not the default), or where what is assumed cannot be.
    """
    read = _Shapes(shapes, where)
    found = (_infer_unet if kind == "unet" else _infer_autoencoder)(read, base)
    default = type(base)()
    for name, value in found.items():
        stated = getattr(base, name)
        if stated not in (value, getattr(default, name)):
            raise InputError(f"{where}: its tensors have {kind}.{name} {value}, the configuration says {stated}")
    section = dataclasses.replace(base, **found)
    for name, shape in expected_shapes(kind, section).items():
        _check_divisors(section, name, shape, where)
    return section


def _check_divisors(section, name, shape, where):
    """Raises InputError where an assumed number does not divide the channels that it has to divide."""
    for field, affected, channels in (
        ("norm_groups", len(shape) == 1 and name.endswith(".weight") or name.endswith("mlp_gamma.weight"), shape[0]),
        ("head_channels", name.endswith("qkv.weight"), shape[0] // 3),
    ):
        number = getattr(section, field, None)
        if affected and number is not None and (number < 1 or channels % number):
            raise InputError(f"{where}: {field} {number} does not divide the {channels} channels of {name}; the shapes "
                             f"do not tell it, give it with --config")


class _Shapes:
    """Shapes by name, asked for with words for what is missing."""

    def __init__(self, shapes, where):
        self.shapes, self.where = shapes, where

    def side(self, name, axis):
        """One side of a tensor, at least 1."""
        shape = self.shapes.get(name, ())
        if len(shape) <= axis or shape[axis] < 1:
            found = f"of shape {shape}" if name in self.shapes else "missing"
            raise InputError(f"{self.where}: {name} is {found}; the configuration is read from it")
        return shape[axis]

    def multiple(self, name, unit):
        """How many times `unit` the first side of a tensor is."""
        side = self.side(name, 0)
        if side % unit:
            raise InputError(f"{self.where}: {name} has {side} channels, expected a multiple of {unit}")
        return side // unit

    def levels(self, number):
        """A number of levels; raises InputError for more than any picture has."""
        if number > _MOST_LEVELS:
            raise InputError(f"{self.where}: a network of {number} levels, expected at most {_MOST_LEVELS}")
        return number

    def count(self, pattern):
        """How many of the names are there that `pattern` makes of 0, 1, 2 and so on."""
        number = 0
        while pattern.format(number) in self.shapes:
            number += 1
        return number


def _infer_autoencoder(read, base):
    ch = read.side("encoder.conv_in.weight", 0)
    levels = read.levels(read.count("encoder.down.{}.block.0.conv1.weight"))
    return {
        "ch": ch,
        "ch_mult": tuple(read.multiple(f"encoder.down.{i}.block.0.conv1.weight", ch) for i in range(levels)),
        "num_res_blocks": read.count("encoder.down.0.block.{}.conv1.weight"),
        "z_channels": read.side("encoder.conv_out.weight", 0),
        "embed_dim": read.side("quantize.embedding.weight", 1),
        "n_embed": read.side("quantize.embedding.weight", 0),
    }


def _infer_unet(read, base):
    width = read.side("input_blocks.0.0.weight", 0)
    blocks = read.count("output_blocks.{}.0.in_layers.1.weight")
    # the decoder tells the levels: each but the last ends with a second block that doubles the resolution, while the
    # encoder's blocks that halve it look like all others
    ends = [k for k in range(blocks) if any(f"output_blocks.{k}.{i}.in_layers.1.weight" in read.shapes for i in (1, 2))]
    levels = read.levels(len(ends) + 1)
    each = blocks // levels
    if blocks == 0 or blocks % levels:
        raise InputError(f"{read.where}: {blocks} decoder blocks in {levels} levels; expected as many in each level")
    mult, attention = [], []
    for level in range(levels):  # the last blocks are those of level 0
        first = (levels - 1 - level) * each
        mult.append(read.multiple(f"output_blocks.{first}.0.out_layers.2.weight", width))
        if f"output_blocks.{first}.1.qkv.weight" in read.shapes:
            attention.append(2**level)
    stated = base.attention_resolutions  # factors beyond the last level have no effect, but make sections differ
    same = {factor for factor in stated if factor < 2**levels} == set(attention)
    return {
        "in_channels": read.side("input_blocks.0.0.weight", 1),
        "num_classes": read.side("middle_block.0.in_norm.mlp_shared.0.weight", 1),
        "model_channels": width,
        "channel_mult": tuple(mult),
        "num_res_blocks": each - 1,
        "attention_resolutions": stated if same and stated != type(base)().attention_resolutions else tuple(attention),
        "spade_channels": read.side("middle_block.0.in_norm.mlp_shared.0.weight", 0),
    }


# ---- the tensors of a network: names and shapes

def _layer(name, *weight):
    """A convolution or a linear layer: its weight, and a bias for each output."""
    yield f"{name}.weight", weight
    yield f"{name}.bias", weight[:1]


def _conv(name, channels, out, kernel=3):
    yield from _layer(name, out, channels, kernel, kernel)


def _autoencoder(c):
    widths = [c.ch * m for m in c.ch_mult]
    yield from _conv("encoder.conv_in", 3, c.ch)
    for i, (before, width) in enumerate(zip([c.ch, *widths[:-1]], widths, strict=True)):
        yield from _level(f"encoder.down.{i}", before, width, c.num_res_blocks)
        if i < len(widths) - 1:
            yield from _conv(f"encoder.down.{i}.downsample.conv", width, width)
    yield from _end("encoder", widths[-1], widths[-1], c.z_channels)
    yield from _conv("decoder.conv_in", c.z_channels, widths[-1])
    for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
        yield from _level(f"decoder.up.{i}", before, width, c.num_res_blocks + 1)
        if i > 0:
            yield from _conv(f"decoder.up.{i}.upsample.conv", width, width)
    yield from _end("decoder", widths[-1], widths[0], 3)
    yield "quantize.embedding.weight", (c.n_embed, c.embed_dim)
    yield from _conv("quant_conv", c.z_channels, c.embed_dim, 1)
    yield from _conv("post_quant_conv", c.embed_dim, c.z_channels, 1)


def _level(name, before, width, blocks):
    for i in range(blocks):
        yield from _resnet_block(f"{name}.block.{i}", width if i else before, width)


def _end(name, middle, last, out):
    """The middle of the encoder or decoder, and its last norm and convolution."""
    for part in ("block_1", "block_2"):
        yield from _resnet_block(f"{name}.mid.{part}", middle, middle)
    yield from _layer(f"{name}.mid.attn_1.norm", middle)
    for part in ("q", "k", "v", "proj_out"):
        yield from _conv(f"{name}.mid.attn_1.{part}", middle, middle, 1)
    yield from _layer(f"{name}.norm_out", last)
    yield from _conv(f"{name}.conv_out", last, out)


def _resnet_block(name, channels, out):
    yield from _layer(f"{name}.norm1", channels)
    yield from _conv(f"{name}.conv1", channels, out)
    yield from _layer(f"{name}.norm2", out)
    yield from _conv(f"{name}.conv2", out, out)
    if channels != out:
        yield from _conv(f"{name}.nin_shortcut", channels, out, 1)


def _unet(c):
    width = c.model_channels
    yield from _layer("time_embed.0", 4 * width, width)
    yield from _layer("time_embed.2", 4 * width, 4 * width)
    yield from _conv("input_blocks.0.0", c.in_channels, width)
    channels, factor, number, skips = width, 1, 0, [width]
    for level, mult in enumerate(c.channel_mult):
        last = level == len(c.channel_mult) - 1
        for i in range(c.num_res_blocks + (not last)):
            number += 1
            down = i == c.num_res_blocks
            out = channels if down else mult * width
            yield from _block(c, f"input_blocks.{number}.0", channels, out)
            if factor in c.attention_resolutions and not down:
                yield from _attention(f"input_blocks.{number}.1", out)
            channels = out
            skips.append(channels)
        factor *= 1 if last else 2
    yield from _spade_block(c, "middle_block.0", channels, channels)
    yield from _attention("middle_block.1", channels)
    yield from _spade_block(c, "middle_block.2", channels, channels)
    number = 0
    for level, mult in reversed(list(enumerate(c.channel_mult))):
        for i in range(c.num_res_blocks + 1):
            yield from _spade_block(c, f"output_blocks.{number}.0", channels + skips.pop(), mult * width)
            channels, place = mult * width, 1
            if factor in c.attention_resolutions:
                yield from _attention(f"output_blocks.{number}.1", channels)
                place = 2
            if level and i == c.num_res_blocks:
                yield from _spade_block(c, f"output_blocks.{number}.{place}", channels, channels)
                factor //= 2
            number += 1
    yield from _layer("out.0", width)
    yield from _conv("out.2", width, 2 * c.in_channels)


def _block(c, name, channels, out):
    yield from _layer(f"{name}.in_layers.0", channels)
    yield from _conv(f"{name}.in_layers.2", channels, out)
    yield from _layer(f"{name}.emb_layers.1", 2 * out, 4 * c.model_channels)
    yield from _layer(f"{name}.out_layers.0", out)
    yield from _conv(f"{name}.out_layers.3", out, out)
    if channels != out:
        yield from _conv(f"{name}.skip_connection", channels, out, 1)


def _spade_block(c, name, channels, out):
    yield from _spade_norm(c, f"{name}.in_norm", channels)
    yield from _conv(f"{name}.in_layers.1", channels, out)
    yield from _layer(f"{name}.emb_layers.1", 2 * out, 4 * c.model_channels)
    yield from _spade_norm(c, f"{name}.out_norm", out)
    yield from _conv(f"{name}.out_layers.2", out, out)
    if channels != out:
        yield from _conv(f"{name}.skip_connection", channels, out, 1)


def _spade_norm(c, name, channels):
    yield from _conv(f"{name}.mlp_shared.0", c.num_classes, c.spade_channels)
    for part in ("mlp_gamma", "mlp_beta"):
        yield from _conv(f"{name}.{part}", c.spade_channels, channels)


def _attention(name, channels):
    yield from _layer(f"{name}.norm", channels)
    yield from _layer(f"{name}.qkv", 3 * channels, channels, 1)
    yield from _layer(f"{name}.proj_out", channels, channels, 1)
