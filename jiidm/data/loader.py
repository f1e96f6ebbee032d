"""Batches prepared ahead of their use in threads: reading and decoding go on while the network computes."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor

WORKERS = 2
AHEAD = 4


class Loader:
    """Gives batch_of(step) for each step from `first` up to, not including, `last`, in their order.

    `batch_of` is called in `workers` threads, at most `ahead` steps before the one that is given. It must be a function
    of the step alone: then neither the threads nor the step at which a run goes on make a difference. An error in it is
    raised at its step, after all batches before. To be used in a `with` block, whose end leaves no thread behind.
    """

    def __init__(self, batch_of, first, last, workers=WORKERS, ahead=AHEAD):
        self.batch_of, self.ahead = batch_of, ahead
        self.steps = iter(range(first, last))
        self.pool = ThreadPoolExecutor(workers, "jiidm-loader")
        self.waiting = deque()

    def __enter__(self):
        self._submit(self.ahead)
        return self

    def __exit__(self, *exception):
        self.close()

    def __iter__(self):
        return self

    def __next__(self):
        """The next batch; waits for it where it is not ready."""
        self._submit(self.ahead + 1)
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft().result()

    def close(self):
        """Gives up what nobody has asked for yet and ends the threads."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.waiting.clear()

    def _submit(self, count):
        """Has `count` batches in hand, as long as there are steps."""
        while len(self.waiting) < count and (step := next(self.steps, None)) is not None:
            self.waiting.append(self.pool.submit(self.batch_of, step))
