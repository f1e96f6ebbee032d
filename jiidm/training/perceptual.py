"""Perceptual losses on features of VGG: LPIPS (Zhang et al. 2018) and GauGAN's. The user gives the weights."""
import numpy as np

from jiidm.foreign.archive import open_weights
from jiidm.models.vgg import STAGES, VGG, WIDTHS, constant
from jiidm.system.runtime import jt

# what VGG was trained on: for pixels in [-1, 1], as LPIPS has it, and for pixels in [0, 1]
_LPIPS_MEAN, _LPIPS_STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STAGE_WEIGHTS = 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0
_TINY = 1e-10


class Perceptual:
    """LPIPS: a distance of pictures by features of VGG-16.

    Args:
        stages: VGG-16's weights, as for `VGG`.
        linear: for each stage the weights of its channels.
    """

    def __init__(self, stages, linear):
        self.vgg = VGG(stages, _LPIPS_MEAN, _LPIPS_STD)
        self.linear = [constant(np.reshape(weight, (1, -1, 1, 1))) for weight in linear]

    @classmethod
    def from_file(cls, vgg_path, lpips_path):
        """Reads the weights; each file is PyTorch's or safetensors.

        Args:
            vgg_path: torchvision's VGG-16 (`features.0.weight` ...).
            lpips_path: LPIPS's linear layers (`lin0.model.1.weight` ...).

        Raises:
            InputError: when a file cannot be read, or a tensor is missing, has another shape or holds NaN.
        """
        stages, lpips = read_vgg(vgg_path, 16), open_weights(lpips_path)
        linear = [lpips.array(f"lin{i}.model.1.weight", (1, width, 1, 1), "LPIPS's linear layers for VGG")
                  for i, width in enumerate(WIDTHS)]
        return cls(stages, linear)

    def __call__(self, real, fake):
        """Distances (N) of real and fake, both N, 3, H, W in [-1, 1] with sides of 16 or more; 0 for equal ones.

        Gradients flow to both.
        """
        distances = 0
        features = self.vgg.features(real, -1), self.vgg.features(fake, -1)
        for first, second, weights in zip(*features, self.linear, strict=True):
            distances = distances + (weights * (_unit(first) - _unit(second)) ** 2).sum(1).mean((1, 2))
        return distances


class VGGLoss:
    """GauGAN's perceptual loss: L1 between features of VGG-19 (Johnson et al. 2016; Wang et al. 2018).

    Args:
        stages: VGG-19's weights, as for `VGG`.
    """

    def __init__(self, stages):
        self.vgg = VGG(stages, _MEAN, _STD)

    @classmethod
    def from_file(cls, path):
        """Reads torchvision's VGG-19 (`features.0.weight` ...) from a PyTorch or safetensors file; raises as
        `Perceptual.from_file` does."""
        return cls(read_vgg(path, 19))

    def __call__(self, real, fake):
        """The loss of real and fake, both N, 3, H, W in [-1, 1]. Gradients flow to `fake` alone."""
        total = 0
        features = (self.vgg.features((x + 1) / 2, 0) for x in (real, fake))
        for weight, expected, found in zip(_STAGE_WEIGHTS, *features, strict=True):
            total = total + weight * jt.abs(expected.detach() - found).mean()
        return total


def read_vgg(path, depth):
    """The weights of torchvision's VGG-16 or VGG-19 (`depth`) in a file, for `VGG`; raises InputError."""
    file, stages, before = open_weights(path), [], 3
    for numbers, width in zip(STAGES[depth], WIDTHS, strict=True):
        stages.append([])
        for number in numbers:
            stages[-1].append([file.array(f"features.{number}.{name}", shape, f"torchvision's VGG-{depth}")
                               for name, shape in (("weight", (width, before, 3, 3)), ("bias", (width,)))])
            before = width
    return stages


def _unit(x):
    """Features (N, C, h, w) scaled to length 1 at each position; where all are zero, so is the gradient."""
    length = jt.sqrt(jt.maximum((x * x).sum(1, keepdims=True), _TINY**2))
    return x / (length + _TINY)
