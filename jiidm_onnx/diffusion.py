"""The noise schedule, the samplers and the guidance in numpy: the same equations as `jiidm.diffusion`, on arrays.

All latents and predictions are N, C, H, W float32. A denoiser is a function (z, t) -> prediction.
"""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from jiidm_onnx.errors import InputError

Denoiser = Callable[[np.ndarray, int], np.ndarray]
_LEAST_SIGNAL = 4e-5  # alpha_cumprod at which the paper's own schedule ends
_TINY = 1e-5  # keeps the ratio of two flat predictions' std at 1


class Schedule:
    """The forward process.

    Args:
        alphas_cumprod: the variance of the signal in z_t, one number a timestep, falling.
        prediction: what the network predicts, "epsilon" or "v".
    """

    def __init__(self, alphas_cumprod: list[float], prediction: str):
        self.alphas_cumprod, self.prediction = np.asarray(alphas_cumprod, np.float64), prediction

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def _scales(self, t: int) -> tuple[float, float]:
        alpha = self.alphas_cumprod[t]
        return float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))

    def add_noise(self, z0: np.ndarray, noise: np.ndarray, t: int) -> np.ndarray:
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise."""
        signal, std = self._scales(t)
        return signal * z0 + std * noise

    def split(self, z: np.ndarray, predicted: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
        """The clean latents and the noise that z_t consists of, by the prediction (v: Salimans & Ho 2022)."""
        signal, std = self._scales(t)
        if self.prediction == "v":
            return signal * z - std * predicted, std * z + signal * predicted
        return (z - std * predicted) / signal, predicted

    def respaced(self, respacing: str) -> np.ndarray:
        """The N timesteps of "ddimN", ascending: every (T / N)-th one from 0; raises InputError where none are."""
        match = re.fullmatch(r"ddim([1-9]\d*)", respacing) if isinstance(respacing, str) else None
        if match:
            for stride in range(1, len(self) + 1):
                timesteps = np.arange(0, len(self), stride)
                if len(timesteps) == int(match[1]):
                    return timesteps
        raise InputError(f'respacing {respacing!r}: expected "ddimN" with an N that a stride through {len(self)} steps '
                         f"gives, such as ddim50")

    def descent(self, start: int, steps: int) -> np.ndarray:
        """`steps` distinct timesteps from `start` down, evenly spaced in log(signal / noise) as far as integers can be.

        Raises:
            InputError: more steps than there are timesteps.
        """
        if not 1 <= steps <= start + 1:
            raise InputError(f"steps {steps}: expected 1 to {start + 1}, the number of timesteps from the start, "
                             f"{start}, down to 0")
        alpha = self.alphas_cumprod[:start + 1]
        if self.alphas_cumprod[-1] == 0:
            alpha = np.maximum(alpha, _LEAST_SIGNAL)
        noise = np.log1p(-alpha) - np.log(alpha)  # rises with the timestep
        even = np.linspace(noise[-1], noise[0], steps + 1)[:-1]
        timesteps = np.rint(np.interp(even, noise, np.arange(start + 1))).astype(int)
        order = np.arange(steps)  # each leaves room for those below it, then moves below the one above
        return np.minimum.accumulate(np.maximum(timesteps, order[::-1]) + order) - order


def ddim(denoise: Denoiser, schedule: Schedule, z: np.ndarray, timesteps: tuple[int, ...]) -> Iterator[np.ndarray]:
    """DDIM with eta 0 (Song et al. 2021, eq. 12); yields the latents after each of the timesteps, which descend."""
    alphas = schedule.alphas_cumprod[list(timesteps)]
    for t, following in zip(timesteps, [*alphas[1:], 1.0], strict=True):
        z0, noise = schedule.split(z, denoise(z, t), t)
        z = float(np.sqrt(following)) * z0 + float(np.sqrt(1 - following)) * noise
        yield z


def dpmpp(denoise: Denoiser, schedule: Schedule, z: np.ndarray, timesteps: tuple[int, ...]) -> Iterator[np.ndarray]:
    """DPM-Solver++(2M), second order (Lu et al. 2022, algorithm 2); as `ddim`, from the timestep z was noised to."""
    before = z  # of weight 0 in the first step
    for t, (kept, now, earlier) in zip(timesteps, _weights(schedule, timesteps).tolist(), strict=True):
        z0, _ = schedule.split(z, denoise(z, t), t)
        z = kept * z + now * z0 + earlier * before
        before = z0
        yield z


def _weights(schedule, timesteps):
    """The weights of the latents, the predicted z0 and the z0 of the step before: steps x 3.

    The first step is of first order, the last one ends at the clean latents.
    """
    alpha = schedule.alphas_cumprod[list(timesteps)]
    signal, std = np.sqrt(alpha), np.sqrt(1 - alpha)
    with np.errstate(divide="ignore"):  # the logarithm of no signal
        h = np.diff(np.log(signal / std))
    extrapolation = np.append(0.0, h[1:] / (2 * h[:-1]))[:len(h)]
    data = -signal[1:] * np.expm1(-h)
    steps = np.stack([std[1:] / std[:-1], data * (1 + extrapolation), -data * extrapolation], 1)
    return np.concatenate([steps, [[0.0, 1.0, 0.0]]])


SAMPLERS = {"ddim": ddim, "dpmpp": dpmpp}


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (Ho & Salimans 2022): null + scale * (conditional - null); `rescale` is phi of Lin et
    al. 2023, section 3.4."""

    scale: float
    rescale: float


def guided_denoiser(predict: Callable, schedule: Schedule, guidance: Guidance) -> Denoiser:
    """The denoiser of a guidance; `predict` is (z, t, conditional, null) -> a list of the predictions asked for."""
    scale = guidance.scale

    def denoise(z, t):
        if scale in (0.0, 1.0):
            return predict(z, t, scale == 1, scale == 0)[0]
        conditional, null = predict(z, t, True, True)
        guided = null + scale * (conditional - null)
        return _rescaled(schedule, z, t, guided, conditional, guidance.rescale) if guidance.rescale else guided

    return denoise


def _rescaled(schedule, z, t, guided, conditional, rescale):
    """The guided prediction with the std of its v, over each image, moved towards that of the conditional one."""
    kept = np.float32(0)
    if schedule.prediction == "epsilon":
        kept = float(np.sqrt(1 - schedule.alphas_cumprod[t])) * z
    guided, conditional = guided - kept, conditional - kept
    ratio = (conditional.std((1, 2, 3), keepdims=True) + _TINY) / (guided.std((1, 2, 3), keepdims=True) + _TINY)
    return (kept + (rescale * ratio + (1 - rescale)) * guided).astype(np.float32)


def draw_noise(seed: int, name: str, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise (float32), a function of the seed, the picture's name and the round's number."""
    key = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
    return rng.standard_normal(shape, np.float32)
