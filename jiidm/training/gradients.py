"""Gradients of a batch that is computed in micro-batches, by one or several processes."""
import math

import numpy as np

from jiidm.kernels.parameters import adamw_step, numbers_of, sum_of_squares
from jiidm.system.distributed import all_reduce_vars, shard
from jiidm.system.runtime import jt
from jiidm.training.patching import patched


class Learner:
    """A network in training and the optimiser of its parameters, or of some of them.

    Args:
        name: prefix of its variables in saved states, such as "network" or "discriminator".
        network: the module.
        optimizer: a `jt.optim.AdamW`.
        rate: its learning rate as a multiple of the training's.
    """

    def __init__(self, name, network, optimizer, rate=1.0):
        self.name, self.network, self.optimizer, self.rate = name, network, optimizer, rate
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = {id(p): key for key, p in network.named_parameters()}
        self.names = [names[id(p)] for p in self.parameters]


def trainable(network):
    """The parameters of a network that an optimiser changes: not the running statistics of its norms."""
    return [p for p in network.parameters() if not p.is_stop_grad()]


def micro_batches(size, micro_batch):
    """How this process computes its shard of a batch.

    Args:
        size: samples of the batch, over all processes.
        micro_batch: samples at a time, at most; 0: the whole shard.

    Returns:
        A list of (slice of the shard, weight). The weighted sum of the slices' means, over all processes, is the mean
        over the batch.
    """
    own = shard(size)
    count = own.stop - own.start
    step = micro_batch or count
    slices = [slice(start, min(start + step, count)) for start in range(0, count, step)]
    return [(part, (part.stop - part.start) / size) for part in slices]


class Gradients:
    """Gradients of a sum of losses with respect to the parameters of a `Learner`.

    Attributes:
        values: float32 Vars in the order of the learner's `names`; None before the first loss.
        grad_norm: L2 norm of all of them; known after `nonfinite`.
    """

    def __init__(self, learner):
        self.learner, self.names = learner, learner.names
        self.values, self.grad_norm = None, math.nan

    def accumulate(self, loss, along=()):
        """Adds the gradients of `loss`. They are computed now, together with the Vars `along`, so that the memory of
        this loss's graph is free for the next one."""
        values = [g.float32() for g in jt.grad(loss, self.learner.parameters)]
        if self.values is not None:
            values = [total + value for total, value in zip(self.values, values, strict=True)]
        for value in values:
            value.stop_grad()
        jt.sync([*values, *along])
        self.values = values

    def all_reduce(self):
        """Sums over all processes."""
        self.values = all_reduce_vars(self.values)

    def nonfinite(self):
        """Computes `grad_norm`; returns the names of the parameters whose gradient is not finite."""
        squares = numbers_of([sum_of_squares(value) for value in self.values])
        self.grad_norm = math.sqrt(math.fsum(squares)) if all(map(math.isfinite, squares)) else math.inf
        return [name for name, square in zip(self.names, squares, strict=True) if not math.isfinite(square)]

    def apply(self, learning_rate):
        """Takes a step of the optimiser; the gradients are used up."""
        optimizer = self.learner.optimizer
        optimizer.lr = learning_rate * self.learner.rate
        optimizer.n_step += 1
        values = iter(self.values)
        for group in optimizer.param_groups:
            group["grads"] = [next(values) for _ in group["params"]]
        adamw_step(optimizer)
        for group in optimizer.param_groups:
            del group["grads"]
        jt.sync(self.learner.parameters)
        self.values = None


def first_nonfinite_output(network, run):
    """Name of the first layer of `network` whose output is not finite when `run()` computes it; None if there is none.
    """
    names = {id(layer): name for name, layer in network.named_modules() if not list(layer.children())}
    found = []

    def checked(layer):
        def execute(*inputs, **options):
            output = type(layer).execute(layer, *inputs, **options)
            if not found and isinstance(output, jt.Var) and not np.isfinite(output.numpy()).all():
                found.append(names[id(layer)])
            return output
        return execute

    with patched((layer for layer in network.modules() if id(layer) in names), checked):
        run()
    return found[0] if found else None
