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


def batch_indices(seed, step, batch, count):
    """Indices of a step's batch: an endless sequence of permutations of `count` samples, cut into batches.

    Args:
        seed: the run's seed.
        step: from 0.
        batch: samples of a batch.
        count: samples there are.

    Returns:
        An array of `batch` whole numbers below `count`.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    orders = {epoch: rng_for(seed, epoch, "order").permutation(count) for epoch in np.unique(positions // count)}
    return np.array([orders[p // count][p % count] for p in positions])
