"""Samplers: generators that yield the number of steps left and the latent.

A denoiser is a function (z, t) -> the network's prediction, which is what the chain's `prediction` says: epsilon or v.
"""
import numpy as np

from jiidm.system.runtime import jt


def ddim(denoise, chain, z, start):
    """DDIM with eta 0 and no clipping (Song et al. 2021, eq. 12), from index start - 1 of the chain down to 0.

    z (N, C, H, W) is the latent noised to `start`. Yields the index, which is the number of steps left, and the
    latent after it; the latent is computed when it is yielded, so that Jittor's graph does not grow.
    """
    for index in range(start - 1, -1, -1):
        previous = chain.previous_alpha_cumprod(index)
        with jt.no_grad():
            z0, epsilon = chain.parts(z, denoise(z, int(chain.timesteps[index])), index)
            z = float(np.sqrt(previous)) * z0 + float(np.sqrt(1 - previous)) * epsilon
            z.sync()
        yield index, z


def dpmpp(denoise, chain, z, start, steps):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): second order, from index `start` of the chain down in `steps`
    evaluations at the indices of `Chain.descent`.

    z (N, C, H, W) is the latent noised to `start`. A solver integrates from the noise that is there, so the first
    evaluation is at `start` itself (DDIM here begins one index lower, as the authors' release does). Yields the number
    of steps left and the latent, computed as in `ddim`. Raises InputError where the chain has too few indices.
    """
    indices = chain.descent(start, steps)
    before = z  # of weight 0 in the first step
    for index, left, weights in zip(indices, range(steps - 1, -1, -1), _weights(chain, indices), strict=True):
        kept, now, earlier = (float(w) for w in weights)
        with jt.no_grad():
            z0, _ = chain.parts(z, denoise(z, int(chain.timesteps[index])), index)
            z = kept * z + now * z0 + earlier * before
            jt.sync([z, z0])
        before = z0
        yield left, z


def _weights(chain, indices):
    """What each step takes of the latent, of its predicted z0 and of the z0 before it: steps x 3, float64.

    The first step is of first order, for want of an earlier z0. So is the last: it ends at the clean latent, where
    lambda is infinite and an extrapolation has no meaning; its result is the predicted z0. So is the second where the
    first begins without any signal: lambda is infinite there too.
    """
    alpha = chain.alphas_cumprod[indices]
    signal, deviation = np.sqrt(alpha), np.sqrt(1 - alpha)
    with np.errstate(divide="ignore"):  # the logarithm of no signal
        h = np.diff(np.log(signal / deviation))
    extrapolation = np.append(0.0, h[1:] / (2 * h[:-1]))[: len(h)]
    share = -signal[1:] * np.expm1(-h)
    steps = np.stack([deviation[1:] / deviation[:-1], share * (1 + extrapolation), -share * extrapolation], 1)
    return np.concatenate([steps, [[0.0, 1.0, 0.0]]])


def round_timesteps(schedule, settings, solver_steps=None):
    """The timesteps of the full chain (numpy integers) that `translate` evaluates with the same settings, in order."""
    chain = schedule.respaced(settings.respacing)
    if solver_steps is None:
        return chain.timesteps[: settings.start][::-1]
    return schedule.descent(int(chain.timesteps[settings.start]), solver_steps)


def translate(denoise, schedule, latent, noise, settings, solver_steps=None):
    """Image-to-image (the paper's section 3): noises `latent` to the round's start index and samples down from there,
    by `ddim` along the round's chain or, with `solver_steps`, by `dpmpp` through the timesteps of the whole schedule.

    latent and noise are N, C, H, W; denoise(z, t, scale) -> the guided prediction; settings is a `RoundConfig`. Yields
    as they do.
    """
    chain = schedule.respaced(settings.respacing)
    z = chain.add_noise(latent, noise, settings.start)

    def guided(z, t):
        return denoise(z, t, settings.guidance)

    if solver_steps is None:
        yield from ddim(guided, chain, z, settings.start)
    else:
        yield from dpmpp(guided, schedule, z, int(chain.timesteps[settings.start]), solver_steps)
