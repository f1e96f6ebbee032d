"""Model ensemble (the paper's section 3): the weights of several checkpoints of one run, averaged.

`Generator` averages when it loads; `jiidm merge` writes the mean as a checkpoint, once. Both use `weighted_mean`.
"""
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jiidm.checkpoint import open_checkpoint, save_checkpoint, source_of
from jiidm.system.errors import InputError


def ensemble_weights(ensemble, count):
    """The weights of `count` checkpoints, of sum 1.

    Args:
        ensemble: True (all equal), False (the last one alone), or a list of numbers in proportion.
        count: how many checkpoints there are.

    Raises:
        InputError: a list of another length, with a negative number, or of sum 0.
    """
    if ensemble is False:
        return (0.0,) * (count - 1) + (1.0,)
    if ensemble is True:
        return (1 / count,) * count
    weights = np.asarray(ensemble, np.float64)
    if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise InputError(
            f"ensemble {ensemble!r}: expected True, False or {count} weights of at least 0, one a checkpoint"
        )
    return tuple(float(w) for w in weights / weights.sum())


def weighted_mean(name, checkpoints, weights):
    """The weighted mean (float32 array) of one tensor of `Checkpoint`s, summed in float64.

    Raises:
        InputError: NaN or Inf in one of the tensors.
    """
    total: float | np.ndarray = 0.0
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        tensor = checkpoint.tensors[name]
        array = tensor.read() if hasattr(tensor, "read") else tensor
        if not np.isfinite(array).all():
            raise InputError(f"{checkpoint.path}: NaN or Inf in {name}; take another checkpoint of the run")
        if weight == 1:  # the only one that counts: float64 would change nothing
            total = array
        elif weight:
            total = total + weight * array.astype(np.float64)
    return np.asarray(total, np.float32)


class _Mean(NamedTuple):
    """A tensor of the mean, computed when it is read: a mean takes the memory of a few tensors."""

    name: str
    checkpoints: list
    weights: tuple

    @property
    def shape(self):
        return self.checkpoints[0].tensors[self.name].shape

    def read(self):
        return weighted_mean(*self)


def average(checkpoints, weights):
    """The weighted means of all tensors of `Checkpoint`s: names to what `read` computes as a float32 array."""
    return {name: _Mean(name, checkpoints, weights) for name in checkpoints[0].tensors}


def check_alike(checkpoints):
    """Raises InputError unless all checkpoints have one architecture; it names the first tensor that differs."""
    first = checkpoints[0]
    for other in checkpoints[1:]:
        for name in sorted(first.tensors.keys() | other.tensors.keys()):
            shapes = [c.tensors[name].shape if name in c.tensors else None for c in (first, other)]
            if shapes[0] != shapes[1]:
                raise InputError(
                    f"{other.path}: cannot be averaged with {first.path}; {name} is "
                    f"{shapes[1] or 'missing'} here and {shapes[0] or 'missing'} there; give checkpoints of one run"
                )
        for section in ("unet", "diffusion", "image", "autoencoder"):
            if getattr(other.config, section) != getattr(first.config, section):
                raise InputError(f"{other.path}: its {section} section differs from that of {first.path}")


def merge_checkpoints(paths, output, weights=True):
    """Writes the mean of checkpoints of one run, tensor by tensor, and returns it as an opened `Checkpoint`.

    The result has the highest step and the configuration and note that belong to it. It names its sources with SHA-256,
    step and weight. It is float16 where all the files are, else float32.

    Args:
        paths: at least two files.
        output: the file to write (.safetensors).
        weights: True (all equal), or a number of at least 0 for each of the paths, in proportion.

    Raises:
        InputError: files that cannot be averaged, or an output that is one of them.
    """
    output, paths = Path(output), [Path(path) for path in paths]
    if len(paths) < 2:
        raise InputError(f"{len(paths)} checkpoint given; expected at least two to average")
    if output.suffix != ".safetensors":
        raise InputError(f"{output}: expected a name that ends with .safetensors")
    checkpoints = [open_checkpoint(path) for path in paths]
    for checkpoint in checkpoints:
        if checkpoint.kind != checkpoints[0].kind:
            raise InputError(f"{checkpoint.path}: holds the {checkpoint.kind}, {paths[0]} the {checkpoints[0].kind}; "
                             f"give checkpoints of one network")
        if output.exists() and output.samefile(checkpoint.path):
            raise InputError(f"{output}: is one of the files to average; choose another name")
    check_alike(checkpoints)
    weights = ensemble_weights(weights, len(checkpoints))
    dtype = _common_dtype(checkpoints)
    last = max(checkpoints, key=lambda checkpoint: checkpoint.step)
    sources = [source_of(c.path, c.step, weight) for c, weight in zip(checkpoints, weights, strict=True)]
    note = "; ".join(filter(None, (last.note, f"mean of {len(paths)} checkpoints")))
    save_checkpoint(output, last.kind, average(checkpoints, weights), last.config, last.step, dtype, note, sources,
                    last.classes)
    return open_checkpoint(output)


def _common_dtype(checkpoints):
    """"float16" where all tensors are, else "float32"; raises InputError for other formats."""
    formats = {tensor.dtype_name for checkpoint in checkpoints for tensor in checkpoint.tensors.values()}
    strange = formats - {"float16", "float32"}
    if strange:
        raise InputError(f"{checkpoints[0].path} and others: tensors of {', '.join(sorted(strange))}; save the "
                         f"checkpoints again")
    return "float16" if formats == {"float16"} else "float32"
