"""Samplers: generators that visit a list of timesteps and yield (steps left, latents) after each.

A sampler owns neither network nor progress bar. Its denoiser is a function (z, t) -> prediction (N, C, H, W) of epsilon
or v, as `schedule.prediction` says. Each step is computed before it is yielded, so that Jittor's graph stays small.

To add a sampler, write one here, name it in SAMPLERS and in `jiidm.config`, and say in `jiidm.inference.plan` which
timesteps it visits.
"""
import numpy as np

from jiidm.system.runtime import jt


def ddim(denoise, schedule, z, timesteps):
    """DDIM with eta 0 and no clipping (Song et al. 2021, eq. 12).

    Args:
        denoise: (z, t) -> the prediction.
        schedule: a `Schedule`.
        z: noised latents (N, C, H, W).
        timesteps: the timesteps to visit, descending; from the last one the step leads to the clean latents.

    Yields:
        (steps left, latents).
    """
    alphas = schedule.alphas_cumprod[np.asarray(timesteps)]
    for i, t in enumerate(timesteps):
        following = alphas[i + 1] if i + 1 < len(alphas) else 1.0
        with jt.no_grad():
            z0, noise = schedule.split(z, denoise(z, int(t)), t)
            z = float(np.sqrt(following)) * z0 + float(np.sqrt(1 - following)) * noise
            z.sync()
        yield len(alphas) - 1 - i, z


def dpmpp(denoise, schedule, z, timesteps):
    """DPM-Solver++(2M), second order (Lu et al. 2022, algorithm 2).

    Arguments and yields are those of `ddim`. A solver integrates from the noise that is there: the first timestep is
    the one that z was noised to.
    """
    before = z  # of weight 0 in the first step
    for left, t, weights in zip(reversed(range(len(timesteps))), timesteps, _weights(schedule, timesteps), strict=True):
        kept, now, earlier = (float(w) for w in weights)
        with jt.no_grad():
            z0, _ = schedule.split(z, denoise(z, int(t)), t)
            z = kept * z + now * z0 + earlier * before
            jt.sync([z, z0])
        before = z0
        yield left, z


def _weights(schedule, timesteps):
    """The weights of the latents, the predicted z0 and the z0 of the step before: steps x 3, float64.

    Three steps are of first order: the first, which has no z0 before it; the last, which ends at the clean latents,
    where lambda is infinite (its result is the predicted z0); and the second where the first begins without signal,
    where lambda is infinite too.
    """
    alpha = schedule.alphas_cumprod[np.asarray(timesteps)]
    signal, std = np.sqrt(alpha), np.sqrt(1 - alpha)
    with np.errstate(divide="ignore"):  # the logarithm of no signal
        h = np.diff(np.log(signal / std))
    extrapolation = np.append(0.0, h[1:] / (2 * h[:-1]))[: len(h)]
    data = -signal[1:] * np.expm1(-h)
    steps = np.stack([std[1:] / std[:-1], data * (1 + extrapolation), -data * extrapolation], 1)
    return np.concatenate([steps, [[0.0, 1.0, 0.0]]])


SAMPLERS = {"ddim": ddim, "dpmpp": dpmpp}
