"""LPIPS (Zhang et al. 2018): how different two pictures look, by the features of VGG-16; the user gives the weights."""
import numpy as np

from jiidm.foreign.archive import open_weights
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

# VGG-16 (Simonyan & Zisserman 2015), by the numbers that torchvision gives its layers: the convolutions of each stage.
# The features are those after a stage's last ReLU; between two stages the resolution is halved.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)

# What VGG was trained on, in the terms of pixels in [-1, 1]: LPIPS's own constants.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_TINY = 1e-10


class Perceptual:
    """The distance of two batches of pictures; its weights do not learn.

    stages: for each stage a list of (weight out x in x 3 x 3, bias); linear: for each one the weights of its channels.
    """

    def __init__(self, stages, linear):
        self.stages = [[(_fixed(weight), _fixed(bias)) for weight, bias in stage] for stage in stages]
        self.linear = [_fixed(np.reshape(weight, (1, -1, 1, 1))) for weight in linear]
        self.shift, self.scale = (_fixed(np.reshape(values, (1, 3, 1, 1))) for values in (SHIFT, SCALE))

    @classmethod
    def from_file(cls, vgg_path, lpips_path):
        """Reads torchvision's VGG-16 (`features.0.weight` ...) and LPIPS's linear layers (`lin0.model.1.weight` ...).

        Each file is PyTorch's or safetensors. Nothing is downloaded. Raises InputError where a file cannot be read, a
        tensor is missing, has another shape or holds NaN.
        """
        vgg, lpips = open_weights(vgg_path), open_weights(lpips_path)
        stages, before = [], 3
        for numbers, width in zip(STAGES, WIDTHS, strict=True):
            stages.append([])
            for number in numbers:
                name = f"features.{number}"
                stages[-1].append((_read(vgg, f"{name}.weight", (width, before, 3, 3)),
                                   _read(vgg, f"{name}.bias", (width,))))
                before = width
        linear = [_read(lpips, f"lin{i}.model.1.weight", (1, width, 1, 1)) for i, width in enumerate(WIDTHS)]
        return cls(stages, linear)

    def __call__(self, real, made):
        """The distances (N) of real and made, both N, 3, H, W in [-1, 1] with sides of 16 or more; 0 is the same.

        Gradients flow to both.
        """
        distances = 0
        for first, second, weights in zip(self._features(real), self._features(made), self.linear, strict=True):
            distances = distances + (weights * (_unit(first) - _unit(second)) ** 2).sum(1).mean((1, 2))
        return distances

    def _features(self, x):
        """Yields the features of each stage: N, C, h, w."""
        x = (x - self.shift) / self.scale
        for number, stage in enumerate(self.stages):
            if number:
                x = _halved(x)
            for weight, bias in stage:
                x = nn.relu(nn.conv2d(x, weight, bias, padding=1))
            yield x


def _halved(x):
    """The maxima of squares of 2 x 2; an odd last row or column is left out. N, C, H, W -> N, C, H // 2, W // 2."""
    n, c, h, w = x.shape
    if h % 2 or w % 2:
        x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def _unit(x):
    """Features (N, C, h, w) with the length 1 at each position; where all are zero, so is the gradient."""
    length = jt.sqrt(jt.maximum((x * x).sum(1, keepdims=True), _TINY**2))
    return x / (length + _TINY)


def _fixed(values):
    return jt.array(np.ascontiguousarray(values, np.float32)).stop_grad()


def _read(weights, name, shape):
    """A tensor of a file as float32; raises InputError where it is missing or not as it should be."""
    stored = weights.tensors.get(name)
    if stored is None:
        raise InputError(f"{weights.path}: no tensor {name}; expected torchvision's VGG-16 and LPIPS's linear layers "
                         f"for VGG, in this order")
    if tuple(stored.shape) != shape:
        raise InputError(f"{weights.path}: {name} has the shape {tuple(stored.shape)}, expected {shape}; is it VGG-16?")
    array = np.asarray(stored.read(), np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{weights.path}: {name} holds NaN or infinity; use another copy of the file")
    return array
