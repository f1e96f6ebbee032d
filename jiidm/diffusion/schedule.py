"""The forward process and its respaced chains (Ho et al. 2020; Song et al. 2021), and what a prediction says of z."""
import re

import numpy as np

from jiidm.system.errors import InputError
from jiidm.system.runtime import jt

_LEAST_SIGNAL = 4e-5  # alpha_cumprod at which the paper's own schedule ends


class Chain:
    """A chain of diffusion steps: the full one, or every n-th step of it.

    `timesteps[k]` is the place of index k in the full chain (what the network is told) and `alphas_cumprod[k]` the
    share of the signal's variance that is left there; both have N entries, float64 for the latter. `prediction` is
    what the network predicts, "epsilon" or "v".
    """

    def __init__(self, timesteps, alphas_cumprod, prediction="epsilon"):
        self.timesteps = timesteps
        self.alphas_cumprod = alphas_cumprod
        self.prediction = prediction

    def __len__(self):
        return len(self.timesteps)

    def previous_alpha_cumprod(self, index):
        """alphas_cumprod one index nearer to the picture; 1 before index 0."""
        return self.alphas_cumprod[index - 1] if index else 1.0

    def add_noise(self, z, noise, index):
        """z_t = sqrt(abar) z + sqrt(1 - abar) noise at `index` of the chain; raises InputError beyond its end."""
        if not 0 < index < len(self):
            raise InputError(f"start index {index}: expected 1 to {len(self) - 1} in a chain of {len(self)} steps")
        alpha = self.alphas_cumprod[index]
        return float(np.sqrt(alpha)) * z + float(np.sqrt(1 - alpha)) * noise

    def parts(self, z, predicted, index):
        """The clean latent and the noise that z (N, C, H, W) at `index` consists of, by the network's prediction.

        v is signal * noise - deviation * z_0 (Salimans & Ho 2022), so that it also tells z_0 where no signal is left.
        """
        alpha = self.alphas_cumprod[index]
        signal, deviation = float(np.sqrt(alpha)), float(np.sqrt(1 - alpha))
        if self.prediction == "v":
            return signal * z - deviation * predicted, deviation * z + signal * predicted
        return (z - deviation * predicted) / signal, predicted

    def descent(self, start, steps):
        """`steps` distinct indices (numpy integers) from `start` down, for a solver of few steps.

        They lie as evenly as integers can in lambda, the logarithm of signal over noise, with one share left between
        the last of them and index 0: the solver jumps from there to the clean latent. (Even places in t leave too
        long steps near the picture: on the default weights 2 dB further from the result of hundreds of steps.) Raises
        InputError for fewer than 1, and for more than there are indices.
        """
        if not 1 <= steps <= start + 1:
            raise InputError(
                f"steps {steps}: expected 1 to {start + 1}, the number of timesteps from the start, {start}, down to 0"
            )
        alpha = self.alphas_cumprod[: start + 1]
        if self.alphas_cumprod[-1] == 0:  # lambda would be infinite at the end, and most of the steps near it
            alpha = np.maximum(alpha, _LEAST_SIGNAL)
        noise = np.log1p(-alpha) - np.log(alpha)  # -2 lambda: rises with the index
        even = np.linspace(noise[-1], noise[0], steps + 1)[:-1]
        indices = np.rint(np.interp(even, noise, np.arange(start + 1))).astype(int)
        # near index 0 even places are less than an index apart: each keeps room for those below it, then moves below
        # the one above
        order = np.arange(steps)
        return np.minimum.accumulate(np.maximum(indices, order[::-1]) + order) - order


class Schedule(Chain):
    """The full chain with beta linear from `beta_start` to `beta_end`, and the posterior of its steps (float64).

    With `zero_terminal_snr` the betas are those of algorithm 1 of Lin et al. 2023: no signal is left at the last step.
    Raises InputError for fewer than 2 steps, and where a beta is no variance between 0 and 1.
    """

    def __init__(self, config):
        if config.timesteps < 2 or not 0 < config.beta_start <= config.beta_end < 1:
            raise InputError(f"diffusion: timesteps {config.timesteps}, beta_start {config.beta_start}, beta_end "
                             f"{config.beta_end}; expected at least 2, and 0 < beta_start <= beta_end < 1")
        self.betas = np.linspace(config.beta_start, config.beta_end, config.timesteps, dtype=np.float64)
        alphas_cumprod = np.cumprod(1 - self.betas)
        if config.zero_terminal_snr:
            self.betas, alphas_cumprod = _without_last_signal(alphas_cumprod)
        super().__init__(np.arange(config.timesteps), alphas_cumprod, config.prediction)
        before = np.append(1.0, self.alphas_cumprod[:-1])
        variance = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        # the variance of the first step is 0; the second's stands in for it under the logarithm
        self.posterior_log_variance = np.log(np.append(variance[1], variance[1:]))
        self.posterior_z0 = self.betas * np.sqrt(before) / (1 - self.alphas_cumprod)
        self.posterior_zt = (1 - before) * np.sqrt(1 - self.betas) / (1 - self.alphas_cumprod)
        # of the squared errors in training; None: all alike
        self.loss_weights = self._min_snr(config.min_snr_gamma) if config.loss_weight == "min_snr" else None

    def _min_snr(self, gamma):
        """Min-SNR-gamma (Hang et al. 2023): of epsilon min(SNR, gamma) / SNR, of v min(SNR, gamma) / (SNR + 1).

        Written with the shares of the variance, which stay finite where no signal is left.
        """
        signal, noise = self.alphas_cumprod, 1 - self.alphas_cumprod
        if self.prediction == "v":
            return np.minimum(signal, gamma * noise)
        return np.minimum(1, gamma * noise / signal)

    def check_start(self, respacing, start, solver_steps=None):
        """Raises InputError for a respacing that does not exist, a start index beyond its chain, or more steps of a
        solver (None: no solver is used) than there are timesteps from there down."""
        chain = self.respaced(respacing)
        chain.add_noise(0.0, 0.0, start)
        if solver_steps is not None:
            self.descent(int(chain.timesteps[start]), solver_steps)

    def noised(self, z0, noise, t):
        """z_t for z0 and noise (N, C, H, W, Jittor) at the timesteps t (N integers, numpy) of the full chain."""
        alpha = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        signal, deviation = (jt.array(share.astype(np.float32)) for share in (np.sqrt(alpha), np.sqrt(1 - alpha)))
        return signal * z0 + deviation * noise

    def respaced(self, respacing):
        """The chain "ddimN": every (T / N)-th step from 0. Raises InputError where no stride gives N steps."""
        match = re.fullmatch(r"ddim([1-9]\d*)", respacing)
        if not match:
            raise InputError(f'respacing {respacing!r}: expected "ddimN", such as "ddim50"')
        count, total = int(match[1]), len(self)
        for stride in range(1, total + 1):
            steps = self.timesteps[::stride]
            if len(steps) == count:
                return Chain(steps, self.alphas_cumprod[steps], self.prediction)
        raise InputError(
            f"respacing {respacing!r}: no stride through {total} steps gives {count}; try ddim50 or ddim100"
        )


def _without_last_signal(alphas_cumprod):
    """Betas and alphas_cumprod with sqrt(alphas_cumprod) shifted to 0 at its end and scaled to its old beginning."""
    signal = np.sqrt(alphas_cumprod)
    signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    alphas_cumprod = signal**2
    return 1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]), alphas_cumprod
