"""What a network costs: its parameters, and the multiplications of its convolutions and linear layers."""
import math

from jiidm.baselines.layers import Convolution, Linear, SpectralConvolution


def parameter_count(network):
    """Number of the trained numbers of a network: statistics and vectors of the power iteration are none."""
    return sum(math.prod(p.shape) for p in network.parameters() if not p.is_stop_grad())


def multiplications(network, run):
    """Multiplications of the convolutions and linear layers of `network` when `run()` executes it.

    This is what the papers' tables call FLOPs: a multiplication with its addition counts once; what is looked up,
    normalised or added costs nothing. CLADE's gamma and beta count as looked up, although `ClassAffine` computes them
    by a 1x1 convolution of the one-hot mask. `run` need only build the result: nothing is computed.
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

    layers = [m for m in network.modules() if isinstance(m, Convolution | Linear | SpectralConvolution)]
    for layer in layers:
        layer.execute = counted(layer)
    try:
        run()
    finally:
        for layer in layers:
            del layer.execute
    return total
