"""VGG-16 and VGG-19 (Simonyan & Zisserman 2015), as far as their features serve as a measure of pictures."""
import numpy as np

from jiidm.system.runtime import jt, nn

# by depth: the numbers that torchvision gives the convolutions of each stage; of VGG-19's last stage the first is used
STAGES = {16: ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)),
          19: ((0, 2), (5, 7), (10, 12, 14, 16), (19, 21, 23, 25), (28,))}
WIDTHS = (64, 128, 256, 512, 512)  # channels of each stage
SMALLEST = 16  # pixels a side, so that something is left in the last stage


class VGG:
    """The convolutions of five stages, each with ReLU; between stages the resolution is halved. Nothing is trained.

    Args:
        stages: for each stage a list of (weight out x in x 3 x 3, bias).
        mean, std: of the pictures it was trained on, in the scale of its input, RGB.
    """

    def __init__(self, stages, mean, std):
        self.stages = [[(constant(weight), constant(bias)) for weight, bias in stage] for stage in stages]
        self.mean, self.std = (constant(np.reshape(values, (1, 3, 1, 1))) for values in (mean, std))

    def features(self, x, layer):
        """Yields the features of each stage.

        Args:
            x: pictures N, 3, H, W, with sides of 16 or more.
            layer: which convolution's ReLU of each stage: 0 for the first, -1 for the last.
        """
        x = (x - self.mean) / self.std
        for number, stage in enumerate(self.stages):
            x = _max_pool(x) if number else x
            for i, (weight, bias) in enumerate(stage):
                x = nn.relu(nn.conv2d(x, weight, bias, padding=1))
                if i == layer % len(stage):
                    yield x


def _max_pool(x):
    """Maxima of 2 x 2 pixels; an odd last row or column is left out. N, C, H, W -> N, C, H // 2, W // 2."""
    n, c, h, w = x.shape
    if h % 2 or w % 2:
        x = x[:, :, : h // 2 * 2, : w // 2 * 2]
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))


def constant(values):
    """A float32 Var that is not trained."""
    return jt.array(np.ascontiguousarray(values, np.float32)).stop_grad()
