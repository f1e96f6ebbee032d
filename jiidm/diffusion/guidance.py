"""Classifier-free guidance by the mask (Ho & Salimans 2022)."""
import numpy as np

from jiidm.kernels import plain_operators
from jiidm.system.runtime import jt

_TINY = 1e-5  # keeps the ratio of two deviations of flat predictions at 1


class Guidance:
    """What a recipe (`InferenceConfig`) does to the guidance of a round: at which timesteps of the full chain there is
    any (Kynkäänniemi et al. 2024), and how far the contrast that it adds is taken back (Lin et al. 2023, section 3.4).
    """

    def __init__(self, schedule, recipe):
        self.first, self.end = recipe.guidance_from, recipe.guidance_to or len(schedule)
        self.share, self.schedule = recipe.guidance_rescale, schedule

    def scale(self, scale, t):
        """The round's scale at the timestep t; 1, that is none, outside of the recipe's timesteps."""
        return scale if self.first <= t < self.end else 1.0

    def rescaled(self, z, t, guided, conditional):
        """The guided prediction (N, C, H, W) for z at t with its standard deviation over an image brought nearer to
        that of the conditional one, by the recipe's share.

        The deviations are those of v, which is what the paper's networks predict. Of epsilon = deviation * z + signal *
        v it is the second part that is scaled, so that either prediction gives the same latents.
        """
        if not self.share:
            return guided
        kept = 0.0
        if self.schedule.prediction == "epsilon":
            kept = float(np.sqrt(1 - self.schedule.alphas_cumprod[t])) * z
        guided, conditional = guided - kept, conditional - kept
        ratio = (_deviation(conditional) + _TINY) / (_deviation(guided) + _TINY)
        return kept + (self.share * ratio + (1 - self.share)) * guided


class GuidedDenoiser:
    """The denoiser of a batch of masks: what depends on the masks alone is computed once, for all steps and rounds.

    mask: one-hot, N x classes x any size. height, width: the latents'. budget: bytes for what is computed once (None:
    as many as it takes); the rest is computed at every step, with the same result. null: the `null` of another denoiser
    of this network and size, to share. joint: without a budget, the decoder runs both branches as one batch. guidance:
    a `Guidance`; None: everywhere, and as it comes.
    """

    def __init__(self, network, mask, height, width, budget=None, null=None, joint=False, guidance=None):
        self.network, self.size, self.joint = network, (height, width), joint and budget is None
        self.guidance = guidance
        self._steps, self._table = {}, []
        with jt.no_grad():
            if null is None:  # serves every image: first in the budget
                null = network.condition(jt.zeros((1, mask.shape[1], height, width)), height, width, budget)
            if budget is not None:
                budget = max(0, budget - _bytes(null))
            self.null, self.conditions = null, network.condition(mask, height, width, budget)
            if self.joint:
                self.conditions = _joined(self.conditions, null, mask.shape[0])
            jt.sync(_maps(self.null) + _maps(self.conditions))

    def prepare(self, timesteps):
        """Computes the part of the time embedding for all `timesteps` (of the full chain) that are to come."""
        with jt.no_grad():
            self._steps = {int(t): k for k, t in enumerate(timesteps)}
            self._table = self.network.embed(jt.array(list(self._steps)).int32())
            jt.sync([v for pair in self._table for v in pair])

    def __call__(self, z, t, scale):
        """p_null + scale * (p_mask - p_null), p being the network's prediction for z (N, C, H, W) and a timestep t;
        plain p_mask at a scale of at most 1. The encoder does not see the mask: both branches share it."""
        scale = self.guidance.scale(scale, t) if self.guidance else scale
        with jt.no_grad():
            if t not in self._steps:
                self.prepare([t])
            row = slice(self._steps[t], self._steps[t] + 1)
            encoded = self.network.encode(z, [(factor[row], summand[row]) for factor, summand in self._table])
            images, channels = z.shape[:2]
            if scale <= 1:
                conditions = _first(self.conditions, images) if self.joint else self.conditions
                return self._decode(encoded, conditions)[:, :channels]
            if self.joint:
                features, rest = encoded
                both = self._decode(([jt.concat([f, f]) for f in features], rest), self.conditions)
                predicted, null = both[:images, :channels], both[images:, :channels]
            else:
                predicted = self._decode(encoded, self.conditions)[:, :channels]
                null = self._decode(encoded, self.null)[:, :channels]
            return _guided(self.guidance, z, t, predicted, null, scale)

    def _decode(self, encoded, conditions):
        return self.network.decode(encoded, conditions, *self.size)


class ReferenceDenoiser:
    """`GuidedDenoiser` as the release computes it: the whole network twice a step, in Jittor's own operators."""

    def __init__(self, network, mask, guidance=None):
        self.network, self.mask, self.guidance = network, mask, guidance

    def prepare(self, timesteps):
        """Nothing is computed ahead."""

    def __call__(self, z, t, scale):
        scale = self.guidance.scale(scale, t) if self.guidance else scale
        with jt.no_grad(), plain_operators():
            steps = jt.full((z.shape[0],), t, "int32")
            predicted = self.network(z, steps, self.mask)[:, : z.shape[1]]
            if scale <= 1:
                return predicted
            null = self.network(z, steps, jt.zeros_like(self.mask))[:, : z.shape[1]]
            return _guided(self.guidance, z, t, predicted, null, scale)


def _guided(guidance, z, t, predicted, null, scale):
    guided = null + scale * (predicted - null)
    return guidance.rescaled(z, t, guided, predicted) if guidance else guided


def _deviation(values):
    """Standard deviation of each image, N x 1 x 1 x 1."""
    centred = values - values.mean((1, 2, 3), keepdims=True)
    return (centred * centred).mean((1, 2, 3), keepdims=True).sqrt()


def _maps(conditions):
    return [v for pair in conditions for one in pair if isinstance(one, tuple) for v in one]


def _bytes(conditions):
    return sum(4 * v.numel() for v in _maps(conditions))


def _first(conditions, images):
    """The masks' own part of what `_joined` made."""
    return [tuple(tuple(m[:images] for m in maps) for maps in pair) for pair in conditions]


def _joined(conditions, null, images):
    """The maps of both branches as those of one batch: the masks', then the null condition's for each image."""
    return [
        tuple(
            tuple(jt.concat([m, n.broadcast([images, *n.shape[1:]])]) for m, n in zip(maps, nulls, strict=True))
            for maps, nulls in zip(pair, null_pair, strict=True)
        )
        for pair, null_pair in zip(conditions, null, strict=True)
    ]
