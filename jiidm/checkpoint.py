"""Files of weights: safetensors with the whole configuration in the metadata, so that loading needs no YAML."""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from jiidm.config import Config, from_dict, to_dict
from jiidm.files import InputError, written_whole
from jiidm.runtime import jt

FORMAT = "jiidm-1"
KINDS = ("autoencoder", "unet")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one network: names to arrays, what network it is, its configuration, and the step it was saved at."""

    path: Path
    kind: str
    config: Config
    step: int
    tensors: dict


def save_checkpoint(path, kind, tensors, config, step, dtype="float16", note=""):
    """Writes the tensors (names to arrays) of a network of `kind` as float16 or float32; `note` says how it was made.

    Raises InputError for NaN and for a number beyond the range of `dtype`: the file could not be loaded again.
    """
    metadata = {"format": FORMAT, "kind": kind, "config": json.dumps(to_dict(config)), "step": str(step), "note": note}
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(value, dtype) for name, value in tensors.items()}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: NaN or a number too large for {dtype} in {_listed(broken)}; not written; go on from "
                         f"an earlier checkpoint of the run")
    save_tensors(path, arrays, metadata)


def save_tensors(path, arrays, metadata):
    """Writes a safetensors file, whole or not at all."""
    with written_whole(path) as temporary:
        try:
            save_file(arrays, temporary, metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error


def load_tensors(path):
    """Arrays and metadata of a safetensors file; raises InputError when it is missing, truncated or of another kind."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except (SafetensorError, OSError, TypeError) as error:  # TypeError: a type that numpy lacks, such as bfloat16
        raise InputError(f"{path}: not a readable safetensors file ({error}); copy or save it again") from error


def load_checkpoint(path, kind=None):
    """Reads a `Checkpoint`; raises InputError for a foreign file, another `kind` of network, or NaN in the weights."""
    path = Path(path)
    tensors, metadata = load_tensors(path)
    found = metadata.get("kind")
    if metadata.get("format") != FORMAT or found not in KINDS:
        raise InputError(f"{path}: not a checkpoint of jiidm (its metadata has no format {FORMAT!r})")
    if kind is not None and found != kind:
        raise InputError(f"{path}: holds the {found}, expected the {kind}")
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    broken = [name for name, value in tensors.items() if not np.isfinite(value).all()]
    if broken:
        raise InputError(f"{path}: NaN or Inf in {_listed(broken)}; take an earlier checkpoint of the run")
    try:
        config, step = json.loads(metadata["config"]), int(metadata["step"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its metadata lacks a readable config and step ({error}); save it again") from error
    return Checkpoint(path, found, from_dict(Config, config, f"{path}, config"), step, tensors)


def load_into(module, tensors, source):
    """Sets the parameters of `module` from arrays by name; raises InputError that lists what is missing, extra or
    mis-shaped, and changes nothing then."""
    parameters = dict(module.named_parameters())
    faults = {
        "missing": sorted(parameters.keys() - tensors.keys()),
        "unexpected": sorted(tensors.keys() - parameters.keys()),
        "mis-shaped": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(p.shape)}"
            for name, p in parameters.items()
            if name in tensors and tuple(tensors[name].shape) != tuple(p.shape)
        ],
    }
    if any(faults.values()):
        lines = "; ".join(f"{kind}: {_listed(names)}" for kind, names in faults.items() if names)
        raise InputError(f"{source}: the weights are of another architecture; {lines}")
    for name, parameter in parameters.items():
        parameter.assign(jt.array(np.ascontiguousarray(tensors[name], "float32")))


def arrays_of(module):
    """The parameters of a module as names to float32 arrays."""
    return {name: parameter.numpy() for name, parameter in module.named_parameters()}


def _listed(names, most=8):
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
