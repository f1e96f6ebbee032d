"""The cost of a network: its parameters, and the multiplications of its convolutions and linear layers."""
import math

from jiidm.baselines.layers import Convolution, Linear, SpectralConvolution
from jiidm.training.gradients import trainable
from jiidm.training.patching import patched


def parameter_count(network):
    """How many trained numbers a network has; running statistics and vectors of the power iteration are not trained."""
    return sum(math.prod(p.shape) for p in trainable(network))


def multiplications(network, run):
    """Multiplications of the convolutions and linear layers of a network in one forward pass.

    This is what the papers' tables call FLOPs: a multiplication with its addition counts once; lookups, norms and sums
    cost nothing. CLADE's gamma and beta count as lookups, although `ClassAffine` computes them by a 1x1 convolution of
    the one-hot mask.

    Args:
        network: the module.
        run: calls it; the result need not be computed.
    """
    total = 0

    def counted(layer):
        def execute(x):
            nonlocal total
            y = type(layer).execute(layer, x)
            weight = layer.weight_orig if isinstance(layer, SpectralConvolution) else layer.weight
            total += math.prod(y.shape) * math.prod(weight.shape[1:])
            return y
        return execute

    with patched((m for m in network.modules() if isinstance(m, Convolution | Linear | SpectralConvolution)), counted):
        run()
    return total
