"""Pictures larger than the network's: predictions in overlapping windows, averaged (Bar-Tal et al. 2023)."""
import numpy as np

from jiidm.system.runtime import jt

_OVERLAP = 0.25  # of a window's side, at least


class WindowedConditions:
    """`Conditions` of masks for latents larger than the network's: one `Conditions` a window.

    Args:
        condition: (top, left) of a window -> its `Conditions`.
        window: height and width of a window in latents.
        size: height and width of the latents, each at least the window's.
    """

    def __init__(self, condition, window, size):
        self.window, self.size = window, size
        self.places = [(top, left) for top in window_starts(size[0], window[0])
                       for left in window_starts(size[1], window[1])]
        self._conditions = [condition(*place) for place in self.places]
        self._weights = np.outer(*(_ramp(side) for side in window))
        self._sum = np.zeros(size, np.float32)
        for part in self._parts():
            self._sum[part] += self._weights

    def prepare(self, timesteps):
        """As `Conditions.prepare`."""
        for conditions in self._conditions:
            conditions.prepare(timesteps)

    def predict(self, z, t, conditional=True, null=False):
        """As `Conditions.predict`: in each place the mean of its windows' predictions, with less weight at their edges.
        """
        z, sums = z.numpy(), None
        for part, conditions in zip(self._parts(), self._conditions, strict=True):
            outputs = [v.numpy() for v in conditions.predict(jt.array(z[(..., *part)]), t, conditional, null)]
            sums = sums or [np.zeros_like(z) for _ in outputs]
            for total, output in zip(sums, outputs, strict=True):
                total[(..., *part)] += self._weights * output
        return [jt.array(total / self._sum) for total in sums]

    def _parts(self):
        """The slices of rows and columns that the windows cover."""
        height, width = self.window
        return [(slice(top, top + height), slice(left, left + width)) for top, left in self.places]


def window_starts(length, window):
    """Where windows begin, evenly spread over a length, each overlapping the next by a quarter or more."""
    count = 1 + int(np.ceil((length - window) / (window * (1 - _OVERLAP))))
    return [int(start) for start in np.linspace(0, length - window, count).round()]


def _ramp(side):
    """Weights over a window's side: 1, falling linearly over the overlap to near 0 at both ends."""
    distance = np.minimum(np.arange(side), np.arange(side)[::-1]) + 1.0
    return np.minimum(1, distance / (1 + _OVERLAP * side)).astype(np.float32)
