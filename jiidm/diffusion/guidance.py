"""Classifier-free guidance by the mask (Ho & Salimans 2022)."""
from jiidm.kernels import plain_operators
from jiidm.runtime import jt


class GuidedDenoiser:
    """The denoiser of a batch of masks: what depends on the masks alone is computed once, for all steps and rounds.

    mask: one-hot, N x classes x any size. height, width: the latents'. budget: bytes for what is computed once (None:
    as many as it takes); the rest is computed at every step, with the same result. null: the `null` of another denoiser
    of this network and size, to share. joint: without a budget, the decoder runs both branches as one batch.
    """

    def __init__(self, network, mask, height, width, budget=None, null=None, joint=False):
        self.network, self.size, self.joint = network, (height, width), joint and budget is None
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
        """epsilon_null + scale * (epsilon_mask - epsilon_null) for z (N, C, H, W) and a timestep t; plain epsilon_mask
        at a scale of at most 1. The encoder does not see the mask: both branches share it."""
        with jt.no_grad():
            if t not in self._steps:
                self.prepare([t])
            row = slice(self._steps[t], self._steps[t] + 1)
            encoded = self.network.encode(z, [(factor[row], summand[row]) for factor, summand in self._table])
            images, channels = z.shape[:2]
            if self.joint:
                features, rest = encoded
                both = self._decode(([jt.concat([f, f]) for f in features], rest), self.conditions)
                epsilon, null = both[:images, :channels], both[images:, :channels]
            else:
                epsilon = self._decode(encoded, self.conditions)[:, :channels]
                null = self._decode(encoded, self.null)[:, :channels] if scale > 1 else epsilon
            return null + scale * (epsilon - null) if scale > 1 else epsilon

    def _decode(self, encoded, conditions):
        return self.network.decode(encoded, conditions, *self.size)


class ReferenceDenoiser:
    """`GuidedDenoiser` as the release computes it: the whole network twice a step, in Jittor's own operators."""

    def __init__(self, network, mask):
        self.network, self.mask = network, mask

    def prepare(self, timesteps):
        """Nothing is computed ahead."""

    def __call__(self, z, t, scale):
        with jt.no_grad(), plain_operators():
            t = jt.full((z.shape[0],), t, "int32")
            epsilon = self.network(z, t, self.mask)[:, : z.shape[1]]
            if scale <= 1:
                return epsilon
            null = self.network(z, t, jt.zeros_like(self.mask))[:, : z.shape[1]]
            return null + scale * (epsilon - null)


def _maps(conditions):
    return [v for pair in conditions for one in pair if isinstance(one, tuple) for v in one]


def _bytes(conditions):
    return sum(4 * v.numel() for v in _maps(conditions))


def _joined(conditions, null, images):
    """The maps of both branches as those of one batch: the masks', then the null condition's for each image."""
    return [
        tuple(
            tuple(jt.concat([m, n.broadcast([images, *n.shape[1:]])]) for m, n in zip(maps, nulls, strict=True))
            for maps, nulls in zip(pair, null_pair, strict=True)
        )
        for pair, null_pair in zip(conditions, null, strict=True)
    ]
