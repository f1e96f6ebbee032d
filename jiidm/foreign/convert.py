"""Converts a file of weights of another program into a checkpoint of jiidm."""
import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from jiidm.checkpoint import BFLOAT16, open_checkpoint, save_checkpoint, source_of
from jiidm.config import Config, check_config, load_config, to_dict
from jiidm.foreign.architecture import ASSUMED, expected_shapes, infer_section
from jiidm.foreign.archive import Weights
from jiidm.foreign.naming import Network, find_network
from jiidm.foreign.unpickle import quote
from jiidm.system.errors import InputError

_NUMBERS = (BFLOAT16, "float16", "float32", "float64")


@dataclass(frozen=True)
class Conversion:
    """A network found in a file, ready to be written.

    Args:
        weights: the file's content.
        network: the tensors of the network.
        config: the whole configuration of the checkpoint.
        configured: whether the user gave a configuration; otherwise it is the default.
        step: the training step.
        shapes: names to the shapes that the checkpoint stores.
    """

    weights: Weights
    network: Network
    config: Config
    configured: bool
    step: int
    shapes: dict

    def report(self) -> Iterator[str]:
        """Yields lines: what was found, what was read from the shapes, and what is assumed."""
        network, section = self.network, getattr(self.config, self.network.kind)
        count = sum(math.prod(shape) for shape in self.shapes.values())
        formats = sorted({tensor.dtype_name for tensor in network.tensors.values()})
        where = f" under {quote(network.prefix)}" if network.prefix else ""
        yield (f"{network.kind}{where}{', averaged copy' if network.averaged else ''}: {len(self.shapes)} tensors, "
               f"{count:,} numbers, {', '.join(formats)}; step {self.step}")
        if network.left_out:
            parts = [f"{number} of {quote(first)}" for first, number in network.left_out.most_common(8)]
            yield f"left out: {', '.join(parts)}{' and others' if len(network.left_out) > 8 else ''}"
        assumed, diffusion = ASSUMED[network.kind], self.config.diffusion
        read = {name: value for name, value in to_dict(section).items() if name not in assumed}
        yield f"configuration, from the shapes: {_format_fields(read)}"
        chain = f"{diffusion.timesteps} timesteps, beta {diffusion.beta_start:g} to {diffusion.beta_end:g}"
        yield (f"not shown by the shapes, {'from --config' if self.configured else 'assumed as in the paper'}: "
               f"{_format_fields({name: getattr(section, name) for name in assumed})}, and every other section "
               f"(image {self.config.image.width}x{self.config.image.height}, {chain}, prediction "
               f"{diffusion.prediction})")


def _format_fields(values):
    """The fields of a section in one line."""
    return ", ".join(f"{key} {yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
                     for key, value in values.items())


class _Converted:
    """A tensor of the file in the shape that the checkpoint stores; its values are read on demand."""

    def __init__(self, path, name, tensor, shape):
        self.path, self.name, self.tensor, self.shape = path, name, tensor, shape

    def read(self):
        """Returns the array; raises InputError for NaN and Inf, and for data that does not fit the shape."""
        try:
            array = self.tensor.read().reshape(self.shape)
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{self.path}: {quote(self.name)}: {error}; do not use the file") from error
        if not np.isfinite(array).all():
            raise InputError(f"{self.path}: NaN or Inf in {quote(self.name)}; the weights cannot be used")
        return array


def list_tensors(weights: Weights) -> Iterator[str]:
    """Yields a line for each tensor of `Weights`: number format, shape, name."""
    for name, tensor in weights.tensors.items():
        yield f"{tensor.dtype_name:<9} {'x'.join(map(str, tensor.shape)) or 'scalar':<20} {quote(name)}"


def plan_conversion(weights: Weights, kind: str | None = None, config: str | Path | None = None, ema: bool = False,
                    step: int | None = None) -> Conversion:
    """Finds the network in a file and its configuration.

    Args:
        weights: the `Weights` from `open_weights`.
        kind: "autoencoder" or "unet". None: the one in the file.
        config: YAML file or checkpoint of jiidm that gives what the shapes do not show. None: the paper's values.
        ema: take the averaged copy of the weights.
        step: the training step. None: the one in the file, or 0.

    Returns:
        The `Conversion`, for `write_checkpoint`.

    Raises:
        InputError: the file holds no such network, or its tensors are not exactly those of the network.
    """
    path = weights.path
    if weights.native:
        raise InputError(f"{path}: is a checkpoint of jiidm already; {open_checkpoint(path).describe()}")
    base = _base_config(config)
    network = find_network(weights, kind, ema)
    _check_claims(path, network.tensors)
    shapes = {name: tensor.shape for name, tensor in network.tensors.items()}
    section = infer_section(network.kind, shapes, getattr(base, network.kind), path)
    whole = dataclasses.replace(base, **{network.kind: section})
    expected = expected_shapes(network.kind, section)
    _check_tensors(path, network.tensors, expected)
    if network.kind == "unet":
        try:
            check_config(whole)
        except InputError as error:
            raise InputError(f"{path}: {error}; give its autoencoder and picture size with --config, a YAML file or "
                             f"the converted autoencoder") from error
    step = step if step is not None else weights.step or 0
    return Conversion(weights, network, whole, config is not None, step, expected)


def _base_config(config):
    """The configuration that gives what the shapes do not show."""
    if config is None:
        return Config()
    return open_checkpoint(config).config if Path(config).suffix == ".safetensors" else load_config(config)


def _check_tensors(path, tensors, expected):
    """Raises InputError unless the tensors are the expected ones, in number formats of weights."""
    faults = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "mis-shaped": [f"{name} {tensors[name].shape} instead of {shape}" for name, shape in expected.items()
                       if name in tensors and _core(tensors[name].shape) != _core(shape)],
        "not of floating point": [f"{name} ({tensors[name].dtype_name})" for name in expected
                                  if name in tensors and tensors[name].dtype_name not in _NUMBERS],
    }
    found = [f"{len(names)} {fault}, the first is {quote(names[0])}" for fault, names in faults.items() if names]
    if found:
        raise InputError(f"{path}: not the tensors of the network that their shapes suggest: {'; '.join(found)}")


def _check_claims(path, tensors):
    """Raises InputError where the tensors claim more bytes than the file has.

    Views may share their values. Those of real networks do not, and a file of a few bytes could claim terabytes.
    """
    claimed, size = sum(tensor.nbytes for tensor in tensors.values()), path.stat().st_size
    if claimed > size:
        raise InputError(f"{path}: its tensors claim {claimed} bytes, the file has {size}; do not use it")


def _core(shape):
    """A shape without trailing ones: linear layers and 1x1 convolutions differ in them."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return tuple(shape)


def write_checkpoint(conversion: Conversion, path: str | Path, half: bool = False) -> None:
    """Writes the checkpoint of a `Conversion`, one tensor at a time.

    Args:
        conversion: from `plan_conversion`.
        path: the file to write, which ends with .safetensors.
        half: float16 in place of float32.

    Raises:
        InputError: NaN or Inf in the weights, a number beyond the range, or the file cannot be written.
    """
    weights, network = conversion.weights, conversion.network
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: expected a name that ends with .safetensors")
    if path.exists() and path.samefile(weights.path):
        raise InputError(f"{path}: is the file to convert; choose another name")
    tensors = {name: _Converted(weights.path, network.prefix + name, network.tensors[name], shape)
               for name, shape in conversion.shapes.items()}
    note = f"converted from {weights.format}{', the averaged copy' if network.averaged else ''}"
    save_checkpoint(path, network.kind, tensors, conversion.config, conversion.step, "float16" if half else "float32",
                    note, [source_of(weights.path, conversion.step)])
