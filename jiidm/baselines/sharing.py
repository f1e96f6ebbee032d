"""Batch normalisation over the shares that several processes have of a batch (mpirun)."""
import numpy as np

from jiidm.system.distributed import rank, world_size
from jiidm.system.runtime import jt


class SharedMoments:
    """Mean and variance of each channel over all processes, for the batch norms of one network, with gradients.

    Every process must use it for the same layers in the same order, after `begin` at the start of each pass. Jittor
    computes when and in what order it likes, but the sums of all processes must meet in one order everywhere: so each
    takes along a number, always zero, that comes of the one before it. By it they depend on each other in the order of
    the layers, and their gradients in the opposite one, whatever the shares' shapes make of the rest.
    """

    def __init__(self):
        own = np.zeros((world_size(), 1), np.float32)
        own[rank()] = 1
        self.own = jt.array(own).stop_grad()
        self.begin()

    def begin(self):
        """Starts the pass of a batch."""
        self.before = jt.zeros((1,))

    def moments(self, mean, var, size):
        """mean and var (1, C, 1, 1, the latter not corrected for bias) of the `size` numbers that this process has of a
        channel -> those of all processes' numbers, and the factor that corrects that variance, a Var of one number."""
        channels = mean.shape[1]
        row = jt.concat([mean.reshape(-1), var.reshape(-1), jt.array(np.float32([size])), self.before])
        every = (row.unsqueeze(0) * self.own).mpi_all_reduce("add")  # a row for each process
        self.before = every[0, -1:]
        means, variances = every[:, :channels], every[:, channels : 2 * channels]
        sizes = every[:, -2:-1].detach()
        total = sizes.sum()
        shares = sizes / total
        mean = (shares * means).sum(0)
        apart = means - mean.unsqueeze(0)
        var = (shares * (variances + apart * apart)).sum(0)
        return mean.reshape(1, -1, 1, 1), var.reshape(1, -1, 1, 1), total / jt.maximum(total - 1, 1.0)
