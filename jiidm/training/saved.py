"""Saved states of a training run: a file for each saved step, with a checksum, of which the newest whole one counts."""
import hashlib
import json
import re

import numpy as np

from jiidm.checkpoint import open_tensors
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole

CHECKSUM = "sha256"  # of the whole file, with zeros in the checksum's own place
_ZEROS = "0" * 64
_BLOCK = 1 << 22


def state_path(run, stage, step):
    """The file of the state of a stage ("autoencoder", "unet") after `step` steps, in the folder `run`."""
    return run / f"{stage}-state-{step:07d}.safetensors"


def saved_states(run, stage):
    """Steps and paths of the states of a stage in the folder `run`, newest first; whether they are whole is not asked.

    A file without a step in its name is taken for the oldest: runs were once saved in one file.
    """
    name = re.compile(rf"{stage}-state(?:-(\d+))?\.safetensors")
    found = [(int(match[1] or 0), path) for path in run.iterdir() if (match := name.fullmatch(path.name))]
    return sorted(found, reverse=True)


def write_state(path, variables, metadata):
    """Writes Jittor variables (name to float32 Var), one at a time, and a checksum; on disk when this returns.

    Raises InputError where it cannot be written, as on a full disk; `path` is as it was then.
    """
    header, end = {"__metadata__": {**metadata, CHECKSUM: _ZEROS}}, 0
    for name, value in variables.items():
        begin, end = end, end + 4 * int(np.prod(value.shape))
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head)
    with written_whole(path) as temporary, open(temporary, "wb") as file:
        file.write(head)
        for value in variables.values():
            array = np.ascontiguousarray(value.numpy(), "<f4")
            file.write(array.data)
            digest.update(array.data)
        file.seek(head.index(_ZEROS.encode()))
        file.write(digest.hexdigest().encode())


def read_state(path):
    """Tensors (`StoredTensor`s by name) and metadata of a saved state.

    Raises InputError when it is missing, truncated, or differs from what was written in as much as a bit.
    """
    tensors, metadata = open_tensors(path)
    expected = metadata.get(CHECKSUM)
    older = expected is None and path.stem.endswith("-state")  # from before there were checksums
    if not older and _checksum(path, expected or _ZEROS) != expected:
        raise InputError(f"{path}: damaged (its checksum does not fit)")
    return tensors, metadata


def _checksum(path, expected):
    with open(path, "rb") as file:
        length = file.read(8)
        text = file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(length + text.replace(expected.encode(), _ZEROS.encode(), 1))
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def prune(run, stage, last, every):
    """Removes the states of a stage but for the newest `last` and those at multiples of `every` (0: no others)."""
    for step, path in saved_states(run, stage)[last:]:
        if not (every and step and step % every == 0):
            path.unlink()
