"""The configuration of a network from the names and shapes of its tensors, and the tensors that it then must have."""
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from jiidm.config import AutoencoderConfig, UNetConfig
from jiidm.system.errors import InputError

# Fields that the shapes do not show. All others are read from them.
ASSUMED = {"autoencoder": ("norm_groups",), "unet": ("head_channels", "norm_groups")}
_MAX_LEVELS, _MAX_BLOCKS, _MAX_SIDE = 12, 100, 2**20  # no network comes near; a hostile file may claim anything


def expected_shapes(kind: str, section: AutoencoderConfig | UNetConfig) -> dict[str, tuple[int, ...]]:
    """Returns names and shapes of all tensors of a network.

    Jittor is lazy: the network is built, but none of its values is computed or takes memory.

    Args:
        kind: "autoencoder" or "unet".
        section: its configuration, an `AutoencoderConfig` or a `UNetConfig`.

    Raises:
        InputError: the section contradicts itself.
    """
    if kind == "unet":
        from jiidm.models.unet import UNet as network_class
    else:
        from jiidm.models.autoencoder import Autoencoder as network_class

    return {name: tuple(parameter.shape) for name, parameter in network_class(section).named_parameters()}


def infer_section(kind: str, shapes: Mapping[str, tuple[int, ...]], base: AutoencoderConfig | UNetConfig,
                  where: str | Path) -> AutoencoderConfig | UNetConfig:
    """Returns the configuration section of the network that has tensors of these shapes.

    Args:
        kind: "autoencoder" or "unet".
        shapes: names to tuples.
        base: the section that gives what shapes do not show, `ASSUMED`.
        where: what messages call the file.

    Raises:
        InputError: a tensor is missing that the section is read from, `base` states another value (one that is not the
            default), or an assumed value does not fit the shapes.
    """
    read = _Shapes(shapes, where)
    found = (_infer_unet if kind == "unet" else _infer_autoencoder)(read, base)
    default = type(base)()
    for name, value in found.items():
        stated = getattr(base, name)
        if stated not in (value, getattr(default, name)):
            raise InputError(f"{where}: its tensors have {kind}.{name} {value}, the configuration says {stated}")
    section = dataclasses.replace(base, **found)
    try:
        expected_shapes(kind, section)
    except InputError as error:
        raise InputError(f"{where}: {error}; the shapes do not show it, give it with --config") from error
    return section


class _Shapes:
    """Shapes by name; each method raises InputError for a value that no network has."""

    def __init__(self, shapes, where):
        self.shapes, self.where = shapes, where

    def side(self, name, axis):
        """One side of a tensor."""
        shape = self.shapes.get(name, ())
        if len(shape) <= axis or min(shape) < 1 or max(shape) > _MAX_SIDE:
            found = f"of shape {shape}" if name in self.shapes else "missing"
            raise InputError(f"{self.where}: {name} is {found}; the configuration is read from it")
        return shape[axis]

    def multiple(self, name, unit):
        """The first side of a tensor as a multiple of `unit`."""
        side = self.side(name, 0)
        if side % unit:
            raise InputError(f"{self.where}: {name} has {side} channels, expected a multiple of {unit}")
        return side // unit

    def count(self, pattern):
        """How many of the names exist that `pattern` gives for 0, 1, 2 and so on."""
        number = 0
        while pattern.format(number) in self.shapes:
            number += 1
        return number

    def level_count(self, number):
        """A number of levels."""
        if number > _MAX_LEVELS:
            raise InputError(f"{self.where}: a network of {number} levels, expected at most {_MAX_LEVELS}")
        return number

    def block_count(self, number):
        """A number of blocks in a level."""
        if number > _MAX_BLOCKS:
            raise InputError(f"{self.where}: a network of {number} blocks a level, expected at most {_MAX_BLOCKS}")
        return number


def _infer_autoencoder(read, base):
    """Values of the autoencoder's section."""
    ch = read.side("encoder.conv_in.weight", 0)
    levels = read.level_count(read.count("encoder.down.{}.block.0.conv1.weight"))
    return {
        "ch": ch,
        "ch_mult": tuple(read.multiple(f"encoder.down.{i}.block.0.conv1.weight", ch) for i in range(levels)),
        "num_res_blocks": read.block_count(read.count("encoder.down.0.block.{}.conv1.weight")),
        "z_channels": read.side("encoder.conv_out.weight", 0),
        "embed_dim": read.side("quantize.embedding.weight", 1),
        "n_embed": read.side("quantize.embedding.weight", 0),
    }


def _infer_unet(read, base):
    """Values of the UNet's section."""
    width = read.side("input_blocks.0.0.weight", 0)
    blocks = read.count("output_blocks.{}.0.in_layers.1.weight")
    # The decoder shows the levels: each but the last ends with a second block, which doubles the resolution. The
    # encoder's blocks that halve it look like all others.
    ends = [k for k in range(blocks) if any(f"output_blocks.{k}.{i}.in_layers.1.weight" in read.shapes for i in (1, 2))]
    levels = read.level_count(len(ends) + 1)
    each = read.block_count(blocks // levels)
    if blocks == 0 or blocks % levels:
        raise InputError(f"{read.where}: {blocks} decoder blocks in {levels} levels; expected as many in each level")
    mult, attention = [], []
    for level in range(levels):  # the last blocks are those of level 0
        first = (levels - 1 - level) * each
        mult.append(read.multiple(f"output_blocks.{first}.0.out_layers.2.weight", width))
        if f"output_blocks.{first}.1.qkv.weight" in read.shapes:
            attention.append(2**level)
    stated = base.attention_resolutions  # may name factors that no level has; they change nothing
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
