"""What the parts of benchmarks/gpu.py share: the shapes of kernels, random inputs and a small network."""
import collections
import dataclasses
from functools import partial

import numpy as np

from jiidm.config import UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.kernels import attention_cuda, group_norm_cuda
from jiidm.kernels.attention import attention_plain
from jiidm.kernels.group_norm import group_norm_plain
from jiidm.system.runtime import jt

SMALL = UNetConfig(model_channels=64, channel_mult=(1, 2, 2), attention_resolutions=(2, 4), head_channels=32)
random = np.random.default_rng(0)


@dataclasses.dataclass
class Bench:
    """What the rows' functions share: tiny shapes or not, the precision, and the ceilings once they are measured."""

    tiny: bool
    precision: str = "fp32"                                  # of the steps: fp32 or bf16
    bandwidth: float = float("nan")                          # bytes a second, read and written
    matrix_rate: dict = dataclasses.field(  # dtype: operations a second
        default_factory=lambda: collections.defaultdict(lambda: float("nan")))

    @property
    def dtype(self):
        """The Jittor dtype of `precision`."""
        return "bfloat16" if self.precision == "bf16" else "float32"

    def shape(self, *sizes):
        """These sizes, or tiny ones."""
        return tuple(min(size, 64) for size in sizes) if self.tiny else sizes


def normal(*shape):
    """Standard normal numbers, float32."""
    return random.standard_normal(shape, np.float32)


def variables(dtype, *arrays):
    """The arrays as Jittor variables of the dtype, computed."""
    result = [jt.array(a).cast(dtype) for a in arrays]
    jt.sync(result)
    return result


def random_mask(n, height, width):
    """A one-hot label map a sample, a random class at each place."""
    return one_hot_batch(random.integers(0, 29, (n, height, width)).astype(np.uint8), 29)


def group_norm_cases(bench, shapes):
    """(what, dtype, kernel, twin, bytes that must be moved) for the three uses in the network."""
    for sizes in shapes:
        n, c, height, width = bench.shape(*sizes)
        x, gamma, beta = normal(n, c, height, width) + 1, normal(1, c, height, width) + 1, normal(1, c, height, width)
        channels = variables("float32", normal(n, c) + 1, normal(n, c))
        for dtype in ("float32", "bfloat16"):
            x_, *maps = variables(dtype, x, gamma, beta)
            size = x.nbytes // (1 if dtype == "float32" else 2)
            for what, one, other in (("channels", None, channels), ("maps", maps, None), ("both", maps, channels)):
                yield (f"group norm {n}x{c}x{height}x{width}, {what}", dtype,
                       partial(group_norm_cuda.group_norm_cuda, x_, 32, 1e-5, one, other, silu=True),
                       partial(group_norm_plain, x_, 32, 1e-5, one, other, silu=True),
                       2 * size + (2 * size // n if one else 0))


def attention_cases(bench, shapes):
    """(what, dtype, kernel, twin, (heads, depth, length))."""
    for sizes in shapes:
        shape = bench.shape(*sizes)
        arrays = [normal(*shape) for _ in range(3)]
        for dtype in ("float32", "bfloat16"):
            qkv = variables(dtype, *arrays)
            if attention_cuda.supports(qkv[0]):
                yield (f"attention {shape[0]}x{shape[1]}x{shape[2]}", dtype,
                       partial(attention_cuda.attention_cuda, *qkv), partial(attention_plain, *qkv), shape)
