"""Samplers: generators that yield the latent after each step. A denoiser is a function (z, t) -> epsilon."""
import numpy as np

from jiidm.runtime import jt


def ddim(denoise, chain, z, start):
    """DDIM with eta 0 and no clipping (Song et al. 2021, eq. 12), from index start - 1 of the chain down to 0.

    z (N, C, H, W) is the latent noised to `start`. Yields the index and the latent after it; the latent is computed
    when it is yielded, so that Jittor's graph does not grow.
    """
    for index in range(start - 1, -1, -1):
        alpha, previous = chain.alphas_cumprod[index], chain.previous_alpha_cumprod(index)
        with jt.no_grad():
            epsilon = denoise(z, int(chain.timesteps[index]))
            z0 = (z - float(np.sqrt(1 - alpha)) * epsilon) / float(np.sqrt(alpha))
            z = float(np.sqrt(previous)) * z0 + float(np.sqrt(1 - previous)) * epsilon
            z.sync()
        yield index, z


def translate(denoise, schedule, latent, noise, settings):
    """Image-to-image (the paper's section 3): noises `latent` to the round's start index and samples down from there.

    latent and noise are N, C, H, W; denoise(z, t, scale) -> epsilon; settings is a `RoundConfig`. Yields as `ddim`.
    """
    chain = schedule.respaced(settings.respacing)
    z = chain.add_noise(latent, noise, settings.start)
    yield from ddim(lambda z, t: denoise(z, t, settings.guidance), chain, z, settings.start)
