"""Gradients of a batch that is computed in parts: by several processes, and by each in micro-batches."""
import math

import numpy as np

from jiidm.system.distributed import all_reduce_vars, shard
from jiidm.system.runtime import jt


def parts(size, micro):
    """How this process computes its share of a batch of `size` samples: a list of (slice of the share, weight).

    A slice has at most `micro` samples (0: the whole share). The weight is its part of the batch: means over slices,
    times their weights, add up to the mean over the batch.
    """
    share = shard(size)
    mine = share.stop - share.start
    slices = [slice(start, min(start + (micro or mine), mine)) for start in range(0, mine, micro or mine)]
    return [(part, (part.stop - part.start) / size) for part in slices]


class Gradients:
    """The gradients of a sum of losses by the parameters that an optimiser updates."""

    def __init__(self, names, optimizer):
        self.names, self.optimizer = list(names), optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.values, self.norm = None, math.nan

    def add(self, loss, logged=()):
        """Adds the gradients of `loss`, computed now together with the Vars `logged`, so that the memory of its graph
        is free for the next one."""
        values = [g.float32() for g in jt.grad(loss, self.parameters)]
        if self.values is not None:
            values = [total + value for total, value in zip(self.values, values, strict=True)]
        for value in values:
            value.stop_grad()
        jt.sync([*values, *logged])
        self.values = values

    def complete(self):
        """Adds up the gradients of all processes."""
        self.values = all_reduce_vars(self.values)

    def bad(self):
        """Names of the parameters whose gradient is not finite; `norm` is that of all gradients from here on."""
        sizes = [(value * value).sum() for value in self.values]
        jt.sync(sizes)
        sizes = [size.item() for size in sizes]
        self.norm = math.sqrt(math.fsum(sizes)) if all(map(math.isfinite, sizes)) else math.inf
        return [name for name, size in zip(self.names, sizes, strict=True) if not math.isfinite(size)]

    def apply(self, rate):
        """Takes a step of the optimiser with the learning rate `rate`; the gradients are used up."""
        self.optimizer.lr = rate
        self.optimizer.n_step += 1
        places = iter(self.values)
        for group in self.optimizer.param_groups:
            group["grads"] = [next(places) for _ in group["params"]]
        self.optimizer.step()
        for group in self.optimizer.param_groups:
            del group["grads"]
        jt.sync(self.parameters)
        self.values = None


def first_bad_output(network, run):
    """Name of the first layer of `network` whose output is not finite when `run()` computes it; None where all are."""
    found = []

    def checked(name, layer):
        def execute(*inputs, **options):
            output = type(layer).execute(layer, *inputs, **options)
            if not found and isinstance(output, jt.Var) and not np.isfinite(output.numpy()).all():
                found.append(name)
            return output
        return execute

    layers = [(name, module) for name, module in network.named_modules() if not list(module.children())]
    for name, layer in layers:
        layer.execute = checked(name, layer)
    try:
        run()
    finally:
        for _, layer in layers:
            del layer.execute
    return found[0] if found else None
