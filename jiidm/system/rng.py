"""Random streams by name."""
import hashlib

import numpy as np


def rng_for(seed, *names):
    """The random generator of a stream, such as `rng_for(seed, step, "crops")`: equal arguments, equal numbers.

    Args:
        seed: the run's seed.
        names: what the numbers are for: strings and whole numbers.

    Returns:
        A numpy `Generator`, seeded by a hash of all arguments.
    """
    digest = hashlib.sha256(repr((int(seed), *(n if isinstance(n, str) else int(n) for n in names))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def batch_indices(seed, step, batch, count, weighted=(), weight=1.0):
    """Indices of a step's batch: an endless sequence of permutations of `count` samples, cut into batches.

    Args:
        seed: the run's seed.
        step: from 0.
        batch: samples of a batch.
        count: samples there are.
        weighted: indices of samples that come `weight` times in each permutation; of 2.5 times, a random half of them
            comes three times.
        weight: more than 0.

    Returns:
        An array of `batch` whole numbers below `count`.
    """
    whole, weighted = int(weight), np.asarray(weighted, int)
    more = round((weight - whole) * len(weighted))
    length = count + (whole - 1) * len(weighted) + more

    def order(epoch):
        times = np.ones(count, int)
        times[weighted] = whole
        times[rng_for(seed, epoch, "weighted").permutation(weighted)[:more]] += 1
        return np.repeat(np.arange(count), times)[rng_for(seed, epoch, "order").permutation(length)]

    positions = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: order(epoch) for epoch in np.unique(positions // length)}
    return np.array([orders[p // length][p % length] for p in positions])
