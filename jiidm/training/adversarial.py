"""Adversarial losses of a PatchGAN discriminator (Isola et al. 2017; Esser et al. 2021)."""
import numpy as np

from jiidm.system.distributed import all_reduce_vars
from jiidm.system.runtime import jt, nn


def hinge_loss(real, fake):
    """Hinge loss of the discriminator; real and fake are its scores, N, 1, h, w."""
    return 0.5 * (nn.relu(1 - real).mean() + nn.relu(1 + fake).mean())


def generator_loss(fake):
    """Loss of the generator: minus the mean score of its pictures."""
    return -fake.mean()


def adaptive_weight(reconstruction, generator):
    """Ratio of the norms of two losses' gradients at the decoder's last layer (Esser et al. 2021, eq. 7).

    Args:
        reconstruction, generator: the gradients, Vars of one shape.

    Returns:
        A float, at most 1e4.
    """
    norms = [float(np.linalg.norm(gradient.numpy())) for gradient in (reconstruction, generator)]
    return min(norms[0] / (norms[1] + 1e-4), 1e4)


def adaptive_weight_of_batch(losses, last_layer):
    """`adaptive_weight` of a batch that is computed in micro-batches by all processes.

    Args:
        losses: yields (weight, reconstruction loss, generator loss) of each micro-batch.
        last_layer: weight of the decoder's last convolution.
    """
    sums = None
    for weight, *pair in losses:
        values = [weight * jt.grad(loss, last_layer, retain_graph=True).detach() for loss in pair]
        sums = values if sums is None else [a + b for a, b in zip(sums, values, strict=True)]
        jt.sync(sums)
    return adaptive_weight(*all_reduce_vars(sums))
