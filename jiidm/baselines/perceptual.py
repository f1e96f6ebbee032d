"""The perceptual loss of GauGAN: L1 between features of VGG-19 (Johnson et al. 2016; Wang et al. 2018)."""
import numpy as np

from jiidm.foreign.archive import open_weights
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

# VGG-19 (Simonyan & Zisserman 2015) up to the first layer of its last stage, by the numbers that torchvision gives its
# convolutions. The features are those after the first ReLU of each stage; between stages the size is halved.
_STAGES = ((0,), (2, 5), (7, 10), (12, 14, 16, 19), (21, 23, 25, 28))
_HALVED_BEFORE = (5, 10, 19, 28)
_WIDTHS = ((5, 64), (10, 128), (19, 256), (29, 512))  # up to which number, how many channels
_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the photos it was trained on, 0 to 1
SMALLEST = 16  # pixels a side, so that something is left in the last stage


class VGGLoss:
    """The distance of two batches of pictures by VGG-19; its weights do not learn.

    `layers` is, in order, a list of (torchvision's number, weight out x in x 3 x 3, bias).
    """

    def __init__(self, layers):
        self.layers = {number: (_fixed(weight), _fixed(bias)) for number, weight, bias in layers}
        self.mean, self.deviation = (_fixed(np.reshape(v, (1, 3, 1, 1))) for v in (_MEAN, _DEVIATION))

    @classmethod
    def from_file(cls, path):
        """Reads torchvision's VGG-19 (`features.0.weight` ...) from a PyTorch or safetensors file.

        Raises InputError where it cannot be read, a tensor is missing, has another shape or holds NaN.
        """
        weights, layers, before = open_weights(path), [], 3
        for number in (number for stage in _STAGES for number in stage):
            width = next(width for end, width in _WIDTHS if number < end)
            name = f"features.{number}"
            layers.append((number, _read(weights, f"{name}.weight", (width, before, 3, 3)),
                           _read(weights, f"{name}.bias", (width,))))
            before = width
        return cls(layers)

    def __call__(self, real, made):
        """The distance of real and made, both N, 3, H, W in [-1, 1]: a number. Gradients flow to `made` alone."""
        total = 0
        for weight, wanted, found in zip(_WEIGHTS, self._features(real), self._features(made), strict=True):
            total = total + weight * jt.abs(wanted.detach() - found).mean()
        return total

    def _features(self, x):
        x = ((x + 1) / 2 - self.mean) / self.deviation
        for stage in _STAGES:
            for number in stage:
                x = _halved(x) if number in _HALVED_BEFORE else x
                x = nn.relu(nn.conv2d(x, *self.layers[number], padding=1))
            yield x


def _halved(x):
    """The maxima of squares of 2 x 2; an odd last row or column is left out. N, C, H, W -> N, C, H // 2, W // 2."""
    n, c, h, w = x.shape
    return x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def _fixed(values):
    return jt.array(np.ascontiguousarray(values, np.float32)).stop_grad()


def _read(weights, name, shape):
    """A tensor of a file as float32; raises InputError where it is missing or not as it should be."""
    stored = weights.tensors.get(name)
    if stored is None or tuple(stored.shape) != shape:
        found = "no such tensor" if stored is None else f"of shape {tuple(stored.shape)}"
        raise InputError(f"{weights.path}: {name}: {found}, expected {shape}; give torchvision's VGG-19")
    array = np.asarray(stored.read(), np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{weights.path}: {name} holds NaN or infinity; use another copy of the file")
    return array
