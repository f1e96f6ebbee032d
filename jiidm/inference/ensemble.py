"""Model ensemble: the weights of several checkpoints of one run, averaged."""
from pathlib import Path

import numpy as np

from jiidm.checkpoint import open_checkpoint, save_checkpoint, source_of
from jiidm.system.errors import InputError


def ensemble_weights(ensemble, count):
    """Shares of `count` checkpoints, summing to 1: equal for True, the last alone for False, or a list's proportions.

    Raises InputError for a list of another length, a negative number, or a sum of 0.
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


def average(checkpoints, weights):
    """Weighted mean of the tensors of `Checkpoint`s, names to float32 arrays (the paper's model ensemble)."""
    mean = {name: np.zeros(value.shape, np.float64) for name, value in checkpoints[0].tensors.items()}
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        for name, total in mean.items():
            total += weight * checkpoint.tensors[name].astype(np.float64)
    return {name: value.astype(np.float32) for name, value in mean.items()}


def check_alike(checkpoints):
    """Raises InputError, naming the first tensor that differs, unless all checkpoints have one architecture."""
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


class _Mean:
    """The weighted mean of one tensor of several checkpoints, computed when it is read."""

    def __init__(self, name, checkpoints, shares):
        self.name, self.checkpoints, self.shares = name, checkpoints, shares
        self.shape = checkpoints[0].tensors[name].shape

    def read(self):
        """The mean as float32, the same numbers as those of `inference.ensemble.average`."""
        total = np.zeros(self.shape, np.float64)
        for checkpoint, share in zip(self.checkpoints, self.shares, strict=True):
            array = checkpoint.tensors[self.name].read()
            if not np.isfinite(array).all():
                raise InputError(f"{checkpoint.path}: NaN or Inf in {self.name}; take another checkpoint of the run")
            total += share * array.astype(np.float64)
        return total.astype(np.float32)


def merge_checkpoints(paths, output, weights=True):
    """Writes the mean of checkpoints of one run to `output` and returns it, opened (a `Checkpoint`).

    weights: True (equal), or a number of at least 0 for each of the paths. Memory is that of a few tensors. The result
    has the highest step and the configuration that belongs to it, is float16 where all the files are, else float32,
    and names its sources with SHA-256, step and share; the last one's note stays. Raises InputError for files that
    cannot be averaged.
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
    shares = ensemble_weights(weights, len(checkpoints))
    formats = {tensor.dtype_name for checkpoint in checkpoints for tensor in checkpoint.tensors.values()}
    strange = formats - {"float16", "float32"}
    if strange:
        raise InputError(f"{paths[0]} and others: tensors of {', '.join(sorted(strange))}; save the checkpoints again")
    last = max(checkpoints, key=lambda checkpoint: checkpoint.step)
    means = {name: _Mean(name, checkpoints, shares) for name in checkpoints[0].tensors}
    sources = [source_of(c.path, c.step, share) for c, share in zip(checkpoints, shares, strict=True)]
    dtype = "float16" if formats == {"float16"} else "float32"
    note = "; ".join(filter(None, (last.note, f"mean of {len(paths)} checkpoints")))
    save_checkpoint(output, last.kind, means, last.config, last.step, dtype, note, sources)
    return open_checkpoint(output)
