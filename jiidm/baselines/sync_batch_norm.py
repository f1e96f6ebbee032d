"""Synchronised batch normalisation: one mean and variance of a batch whose shards several processes compute."""
import numpy as np

from jiidm.system.distributed import rank, world_size
from jiidm.system.runtime import jt


class SyncMoments:
    """Mean and variance of each channel over all processes, with gradients, for the batch norms of one network.

    Every process must use it for the same layers in the same order, after `begin` at the start of each forward pass.

    Jittor chooses the order of its computations, but all_reduce must be called in the same order everywhere. So each
    all_reduce sends along a number, always zero, that is a result of the one before. This makes the forward ones depend
    on each other in the order of the layers, and the backward ones in the opposite order.
    """

    def __init__(self):
        own = np.zeros((world_size(), 1), np.float32)
        own[rank()] = 1
        self.own = jt.array(own).stop_grad()
        self.begin()

    def begin(self):
        """Starts a forward pass."""
        self.before = jt.zeros((1,))

    def moments(self, mean, var, count):
        """Moments over all processes.

        Args:
            mean, var: 1, C, 1, 1, those of this process's numbers; var is not corrected for bias.
            count: how many numbers a channel has in this process.

        Returns:
            mean and var over all processes, and the factor that corrects var for bias, a Var of one number.
        """
        channels = mean.shape[1]
        row = jt.concat([mean.reshape(-1), var.reshape(-1), jt.array(np.float32([count])), self.before])
        rows = (row.unsqueeze(0) * self.own).mpi_all_reduce("add")  # one for each process
        self.before = rows[0, -1:]
        means, variances = rows[:, :channels], rows[:, channels : 2 * channels]
        counts = rows[:, -2:-1].detach()
        total = counts.sum()
        weights = counts / total
        mean = (weights * means).sum(0)
        offsets = means - mean.unsqueeze(0)
        var = (weights * (variances + offsets * offsets)).sum(0)
        return mean.reshape(1, -1, 1, 1), var.reshape(1, -1, 1, 1), total / jt.maximum(total - 1, 1.0)
