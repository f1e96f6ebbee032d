"""The forward process (Ho et al. 2020), the timesteps that samplers visit, and what a prediction says of z."""
import re

import numpy as np

from jiidm.config import DiffusionConfig
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt

_LEAST_SIGNAL = 4e-5  # alpha_cumprod at which the paper's own schedule ends


class Schedule:
    """Betas that rise linearly from `beta_start` to `beta_end`, and all that follows from them.

    With `zero_terminal_snr` the betas are those of algorithm 1 of Lin et al. 2023: no signal is left at the last step.

    Attributes, float64 and one number a timestep: `betas`; `alphas_cumprod`, the variance of the signal in z_t;
    `posterior_z0`, `posterior_zt` and `posterior_log_variance` of q(z_{t-1} | z_t, z_0); `loss_weights` of the squared
    errors in training (None: all 1). `prediction` is what the network predicts, "epsilon" or "v".

    Raises:
        InputError: fewer than 2 timesteps, or a beta that is not between 0 and 1.
    """

    def __init__(self, config: DiffusionConfig):
        if config.timesteps < 2 or not 0 < config.beta_start <= config.beta_end < 1:
            raise InputError(f"diffusion: timesteps {config.timesteps}, beta_start {config.beta_start}, beta_end "
                             f"{config.beta_end}; expected at least 2, and 0 < beta_start <= beta_end < 1")
        self.prediction = config.prediction
        self.betas = np.linspace(config.beta_start, config.beta_end, config.timesteps, dtype=np.float64)
        self.alphas_cumprod = np.cumprod(1 - self.betas)
        if config.zero_terminal_snr:
            self.betas, self.alphas_cumprod = _without_last_signal(self.alphas_cumprod)
        before = np.append(1.0, self.alphas_cumprod[:-1])
        variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        # the variance of the first step is 0; the second's replaces it under the logarithm
        self.posterior_log_variance = np.log(np.append(variance[1], variance[1:]))
        self.posterior_z0 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_zt = (1 - before) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        self.loss_weights = self._min_snr(config.min_snr_gamma) if config.loss_weight == "min_snr" else None

    def __len__(self) -> int:
        return len(self.betas)

    def _min_snr(self, gamma):
        """Min-SNR-gamma (Hang et al. 2023): min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v.

        Written with variances, which stay finite where no signal is left.
        """
        signal, noise = self.alphas_cumprod, 1 - self.alphas_cumprod
        if self.prediction == "v":
            return np.minimum(signal, gamma * noise)
        return np.minimum(1, gamma * noise / signal)

    def _scales(self, t):
        """sqrt(abar_t) and sqrt(1 - abar_t): numbers for one timestep, Jittor arrays (N, 1, 1, 1) for N of them."""
        alpha = self.alphas_cumprod[t]
        if np.ndim(t) == 0:
            return float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))
        return tuple(jt.array(np.sqrt(v).astype(np.float32).reshape(-1, 1, 1, 1)) for v in (alpha, 1 - alpha))

    def add_noise(self, z0, noise, t):
        """z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise.

        Args:
            z0, noise: N, C, H, W.
            t: a timestep, or N of them (numpy integers), one an image.
        """
        signal, std = self._scales(t)
        return signal * z0 + std * noise

    def split(self, z, predicted, t: int):
        """The clean latents z_0 and the noise that z_t consists of, by the network's prediction.

        v is sqrt(abar_t) * noise - sqrt(1 - abar_t) * z_0 (Salimans & Ho 2022): it tells z_0 even without signal.

        Args:
            z, predicted: N, C, H, W.
            t: the timestep of z.
        """
        signal, std = self._scales(t)
        if self.prediction == "v":
            return signal * z - std * predicted, std * z + signal * predicted
        return (z - std * predicted) / signal, predicted

    def respaced(self, respacing: str) -> np.ndarray:
        """The N timesteps of "ddimN", ascending: every (T / N)-th one from 0.

        Raises:
            InputError: another word than "ddimN", or an N that no stride gives.
        """
        match = re.fullmatch(r"ddim([1-9]\d*)", respacing)
        if not match:
            raise InputError(f'respacing {respacing!r}: expected "ddimN", such as "ddim50"')
        count, total = int(match[1]), len(self)
        for stride in range(1, total + 1):
            timesteps = np.arange(0, total, stride)
            if len(timesteps) == count:
                return timesteps
        raise InputError(
            f"respacing {respacing!r}: no stride through {total} steps gives {count}; try ddim50 or ddim100"
        )

    def descent(self, start: int, steps: int) -> np.ndarray:
        """`steps` distinct timesteps from `start` down, for a solver of few steps.

        They are evenly spaced in lambda = log(signal / noise), as far as integers can be. One more such step leads from
        the last of them to timestep 0; the solver jumps from there to the clean latents. (Even spacing in t leaves too
        long steps near the picture: 2 dB further from the result of hundreds of steps on the default weights.)

        Raises:
            InputError: fewer than 1 step, or more than there are timesteps.
        """
        if not 1 <= steps <= start + 1:
            raise InputError(
                f"steps {steps}: expected 1 to {start + 1}, the number of timesteps from the start, {start}, down to 0"
            )
        alpha = self.alphas_cumprod[: start + 1]
        if self.alphas_cumprod[-1] == 0:  # lambda would be infinite at the end, and most of the steps near it
            alpha = np.maximum(alpha, _LEAST_SIGNAL)
        noise = np.log1p(-alpha) - np.log(alpha)  # -2 lambda: rises with the timestep
        even = np.linspace(noise[-1], noise[0], steps + 1)[:-1]
        timesteps = np.rint(np.interp(even, noise, np.arange(start + 1))).astype(int)
        # near timestep 0 even places are less than a timestep apart: each one first leaves room for those below it,
        # then moves below the one above
        order = np.arange(steps)
        return np.minimum.accumulate(np.maximum(timesteps, order[::-1]) + order) - order


def _without_last_signal(alphas_cumprod):
    """Betas and alphas_cumprod with sqrt(alphas_cumprod) shifted to 0 at its end and scaled to its old beginning."""
    signal = np.sqrt(alphas_cumprod)
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal**2
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]), alphas_cumprod
