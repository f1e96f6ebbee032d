"""The guard of a training: a step whose numbers are not finite, or whose loss explodes, changes no weight."""
import math
import statistics
from collections import deque

_WINDOW, _ENOUGH = 100, 20  # losses that the median is of, and how many it takes


class Watch:
    """Looks at each step's losses and gradients before the weights are updated.

    A step is bad when a loss or a gradient is not finite, or when the first loss exceeds `limit` times the median of
    its last 100 values (0: no limit). `allowed` bad steps are left out of a run; `skipped` counts them.
    """

    def __init__(self, limit, allowed):
        self.limit, self.allowed = limit, allowed
        self.recent, self.skipped = deque(maxlen=_WINDOW), 0

    def fault(self, losses, gradients):
        """What is wrong with a step, in words, or None; takes the first of the `losses` (names to floats) into account
        for steps to come. `gradients` is a list of `Gradients`."""
        name, first = next(iter(losses.items()))
        wrong = [f"{key} is {value}" for key, value in losses.items() if not math.isfinite(value)]
        median = statistics.median(self.recent) if len(self.recent) >= _ENOUGH else math.inf
        if wrong:
            return wrong[0]
        if self.limit and first > self.limit * median:
            return f"{name} is {first:.4g}, more than {self.limit:g} times the median of the last steps, {median:.4g}"
        for each in gradients:
            for parameter in each.bad():
                return f"the gradient of {parameter} is not finite"
        self.recent.append(first)
        return None

    def may_skip(self):
        """Whether one more bad step may be left out; counts it."""
        self.skipped += 1
        return self.skipped <= self.allowed

    def state(self):
        """What a saved state must hold for a resumed run to judge alike."""
        return {"recent": list(self.recent), "skipped": self.skipped}

    def restore(self, state):
        """Takes up what `state` gave."""
        self.recent = deque(state["recent"], maxlen=_WINDOW)
        self.skipped = state["skipped"]
