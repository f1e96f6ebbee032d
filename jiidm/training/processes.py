"""One training in several processes (mpirun): what each takes of a batch, and what they tell each other.

Without mpirun there is one process, and nothing here does anything. What sums and sends is called by all processes in
the same order.
"""
import numpy as np

from jiidm.runtime import jt


def count():
    """How many processes train together."""
    return jt.world_size if jt.in_mpi else 1


def rank():
    """Number of this process, from 0; process 0 writes and reports."""
    return jt.rank if jt.in_mpi else 0


def is_first():
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def own_share(size):
    """The slice of a batch of `size` samples that this process computes; the slices of all of them make up the batch.

    The batch must have a sample for each process.
    """
    edges = np.linspace(0, size, count() + 1).astype(int)
    return slice(int(edges[rank()]), int(edges[rank() + 1]))


def added(array):
    """The sum of all processes' arrays (numpy, taken as float32), of one shape."""
    if count() == 1:
        return np.asarray(array, np.float32)
    return jt.array(np.asarray(array, np.float32)).mpi_all_reduce("add").numpy()


def all_added(variables):
    """The sums of all processes' Vars, a list of the same length, on the device."""
    if count() == 1:
        return variables
    sums = []
    for variable in variables:
        sums.append(variable.detach().mpi_all_reduce("add").stop_grad())
        sums[-1].sync()  # one after the other, in the same order everywhere
    return sums


def joined(array, size):
    """The rows of a whole batch of `size` samples, from each process the rows of its `own_share` (numpy float32)."""
    if count() == 1:
        return array
    rows = np.zeros((size, *array.shape[1:]), np.float32)
    rows[own_share(size)] = array
    return added(rows)


def numbers_of_first(numbers):
    """The whole numbers of process 0 (a list, of less than 2**31), known to all."""
    return _sent(np.array(numbers, np.int32)).tolist()


def text_of_first(text, length=8000):
    """The text of process 0, cut at `length` bytes, known to all."""
    raw = np.zeros(length, np.uint8)
    given = np.frombuffer(text.encode()[:length], np.uint8)
    raw[: len(given)] = given
    return bytes(_sent(raw)).rstrip(b"\0").decode(errors="ignore")


def copy_of_first(variables):
    """Gives Vars the values that they have in process 0."""
    if count() > 1:
        for variable in variables:
            variable.assign(jt.array(_sent(variable.numpy().copy())))


def _sent(array):
    if count() > 1:
        jt.mpi.broadcast(array, 0)  # writes into the array
    return array


def wait_for_all():
    """Returns when all processes have come here."""
    added(np.zeros(1))
