"""Classifier-free guidance by the mask (Ho & Salimans 2022)."""
from dataclasses import dataclass

import numpy as np

from jiidm.system.runtime import jt

_TINY = 1e-5  # keeps the ratio of two flat predictions' std at 1


@dataclass(frozen=True)
class Guidance:
    """How the two predictions of a step become one: null + scale * (conditional - null).

    `scale` is at least 0: 1 is the conditional prediction alone and 0 the unconditional one alone, each in one forward;
    between them the two are interpolated, above 1 extrapolated. `rescale`, 0 to 1, moves the std of guided predictions
    towards that of conditional ones (phi of Lin et al. 2023, section 3.4).
    """

    scale: float
    rescale: float = 0.0


def guided_denoiser(predict, schedule, guidance):
    """The denoiser (z, t) -> prediction (N, C, H, W) that a sampler takes.

    Args:
        predict: (z, t, conditional, null) -> a list of the predictions asked for, in this order; both are bools.
        schedule: a `Schedule`.
        guidance: a `Guidance`.
    """
    scale = guidance.scale

    def denoise(z, t):
        with jt.no_grad():
            if scale in (0.0, 1.0):
                return predict(z, t, conditional=scale == 1, null=scale == 0)[0]
            conditional, null = predict(z, t, conditional=True, null=True)
            guided = null + scale * (conditional - null)
            return _rescaled(schedule, z, t, guided, conditional, guidance.rescale) if guidance.rescale else guided

    return denoise


def _rescaled(schedule, z, t, guided, conditional, rescale):
    """The guided prediction with its std over each image moved towards that of the conditional one.

    The std is that of v. Of epsilon = std_t * z + signal_t * v only the second part is scaled, so that either
    prediction gives the same latents.
    """
    kept = 0.0
    if schedule.prediction == "epsilon":
        kept = float(np.sqrt(1 - schedule.alphas_cumprod[t])) * z
    guided, conditional = guided - kept, conditional - kept
    ratio = (_std(conditional) + _TINY) / (_std(guided) + _TINY)
    return kept + (rescale * ratio + (1 - rescale)) * guided


def _std(values):
    """Standard deviation of each image, N x 1 x 1 x 1."""
    centred = values - values.mean((1, 2, 3), keepdims=True)
    return (centred * centred).mean((1, 2, 3), keepdims=True).sqrt()
