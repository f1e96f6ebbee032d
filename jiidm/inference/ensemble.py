"""Model ensemble: the weights of several checkpoints of one run, averaged."""
import numpy as np

from jiidm.files import InputError


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
