"""Classifier-free guidance by the mask (Ho & Salimans 2022)."""
from jiidm.runtime import jt


class GuidedDenoiser:
    """The denoiser of a batch of masks: what depends on the masks alone is computed once, for all steps and rounds.

    mask: one-hot, N x classes x any size. height, width: the latents'.
    """

    def __init__(self, network, mask, height, width):
        self.network = network
        self.size = height, width
        with jt.no_grad():
            self.maps = network.condition(mask, height, width)
            null = jt.zeros((1, mask.shape[1], height, width))
            self.null_maps = network.condition(null, height, width)
            jt.sync([v for maps in (self.maps, self.null_maps) for norm in maps for pair in norm for v in pair])

    def __call__(self, z, t, scale):
        """epsilon_null + scale * (epsilon_mask - epsilon_null) for z (N, C, H, W) and a timestep t; plain epsilon_mask
        at a scale of at most 1. The encoder does not see the mask: both branches share it."""
        with jt.no_grad():
            encoded = self.network.encode(z, jt.full((z.shape[0],), t, "int32"))
            epsilon = self.network.decode(encoded, self.maps, *self.size)[:, : z.shape[1]]
            if scale > 1:
                null = self.network.decode(encoded, self.null_maps, *self.size)[:, : z.shape[1]]
                epsilon = null + scale * (epsilon - null)
            return epsilon
