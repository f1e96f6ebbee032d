"""The guard of a training: a step whose numbers are not finite, or whose loss explodes, changes no weight."""
import math
import statistics
from collections import deque

_WINDOW, _ENOUGH = 100, 20  # losses that the median is taken over, and how many it takes


class Watch:
    """Judges each step's losses and gradients before the weights are updated.

    A step is bad when a loss or a gradient is not finite, or when the first loss exceeds `limit` times the median of
    its last 100 values.

    Args:
        limit: multiple of the median; 0 for no limit.
        allowed: how many bad steps of a run may be skipped.

    Attributes:
        skipped: how many have been.
    """

    def __init__(self, limit, allowed):
        self.limit, self.allowed = limit, allowed
        self.recent, self.skipped = deque(maxlen=_WINDOW), 0

    def fault(self, losses, gradients):
        """What is wrong with a step, in words, or None; remembers the first loss of a good one.

        Args:
            losses: names to floats.
            gradients: a list of `Gradients`.
        """
        name, first = next(iter(losses.items()))
        wrong = [f"{key} is {value}" for key, value in losses.items() if not math.isfinite(value)]
        median = statistics.median(self.recent) if len(self.recent) >= _ENOUGH else math.inf
        if wrong:
            return wrong[0]
        if self.limit and first > self.limit * median:
            return f"{name} is {first:.4g}, more than {self.limit:g} times the median of the last steps, {median:.4g}"
        for each in gradients:
            for parameter in each.nonfinite():
                return f"the gradient of {parameter} is not finite"
        self.recent.append(first)
        return None

    def may_skip(self):
        """Counts a bad step; returns whether it may be skipped."""
        self.skipped += 1
        return self.skipped <= self.allowed

    def state(self):
        """What a saved state holds of it, so that a resumed run judges alike."""
        return {"recent": list(self.recent), "skipped": self.skipped}

    def restore(self, state):
        """Restores what `state` returned."""
        self.recent = deque(state["recent"], maxlen=_WINDOW)
        self.skipped = state["skipped"]
