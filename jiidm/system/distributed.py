"""One training in several processes (mpirun): what each takes of a batch, and what they tell each other.

Without mpirun there is one process, and nothing here does anything. What sums and sends is called by all processes in
the same order.
"""
import numpy as np

from jiidm.system.runtime import jt


def world_size():
    """How many processes train together."""
    return jt.world_size if jt.in_mpi else 1


def rank():
    """Number of this process, from 0; process 0 writes and reports."""
    return jt.rank if jt.in_mpi else 0


def is_main_process():
    """Whether this process is the one that writes and reports."""
    return rank() == 0


def shard(size):
    """The slice of a batch of `size` samples that this process computes; the slices of all of them make up the batch.

    The batch must have a sample for each process.
    """
    edges = np.linspace(0, size, world_size() + 1).astype(int)
    return slice(int(edges[rank()]), int(edges[rank() + 1]))


def all_reduce(array):
    """The sum of all processes' arrays (numpy, taken as float32), of one shape."""
    if world_size() == 1:
        return np.asarray(array, np.float32)
    return jt.array(np.asarray(array, np.float32)).mpi_all_reduce("add").numpy()


def all_reduce_vars(variables):
    """The sums of all processes' Vars, a list of the same length, on the device."""
    if world_size() == 1:
        return variables
    sums = []
    for variable in variables:
        sums.append(variable.detach().mpi_all_reduce("add").stop_grad())
        sums[-1].sync()  # one after the other, in the same order everywhere
    return sums


def all_gather(array, size):
    """The rows of a whole batch of `size` samples, from each process the rows of its `shard` (numpy float32)."""
    if world_size() == 1:
        return array
    rows = np.zeros((size, *array.shape[1:]), np.float32)
    rows[shard(size)] = array
    return all_reduce(rows)


def broadcast_numbers(numbers):
    """The whole numbers of process 0 (a list, of less than 2**31), known to all."""
    return _sent(np.array(numbers, np.int32)).tolist()


def broadcast_text(text, length=8000):
    """The text of process 0, cut at `length` bytes, known to all."""
    raw = np.zeros(length, np.uint8)
    given = np.frombuffer(text.encode()[:length], np.uint8)
    raw[: len(given)] = given
    return bytes(_sent(raw)).rstrip(b"\0").decode(errors="ignore")


def broadcast_vars(variables):
    """Gives Vars the values that they have in process 0."""
    if world_size() > 1:
        for variable in variables:
            variable.assign(jt.array(_sent(variable.numpy().copy())))


def _sent(array):
    if world_size() > 1:
        jt.mpi.broadcast(array, 0)  # writes into the array
    return array


def barrier():
    """Returns when all processes have come here."""
    all_reduce(np.zeros(1))
