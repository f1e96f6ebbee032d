"""What a training run writes down: a CSV of one row for each logged step and, on request, TensorBoard's files."""
import csv
from pathlib import Path

import numpy as np

from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole


class Table:
    """A CSV; every row is flushed at once. To be used in a `with` block.

    Args:
        path: the file; its rows up to step `resume_from` are kept.
        columns: names, "step" among them; a file with other ones starts anew.
        resume_from: the step that the run goes on from; 0 starts the file anew.

    Raises:
        InputError: when it cannot be written, as on a full disk.
    """

    def __init__(self, path, columns, resume_from):
        self.path, self.columns = Path(path), columns
        rows = _rows(self.path, columns, resume_from) if resume_from else []
        with written_whole(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self.file = open(self.path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self.writer = csv.DictWriter(self.file, columns)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        try:
            self.file.close()
        except OSError as error:  # what a full disk has kept in the buffer
            if exception[0] is None:
                raise self._write_error(error) from error

    def write(self, **values):
        """Appends a row."""
        try:
            self.writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
            self.file.flush()
        except OSError as error:
            raise self._write_error(error) from error

    def _write_error(self, error):
        return InputError(f"{self.path}: cannot be written ({error.strerror or error})")


def _rows(path, columns, last):
    """The whole rows of a CSV up to step `last`."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if row.keys() == set(columns) and None not in row.values()]
    return [row for row in rows if row["step"].isdigit() and int(row["step"]) <= last]


class EventWriter:
    """Writes TensorBoard's event files.

    Args:
        path: the folder to write into. None: nothing is written.
        stage: "autoencoder", "unet" ..., the prefix of every name.

    Raises:
        InputError: when tensorboardX is not installed or the folder cannot be written.
    """

    def __init__(self, path, stage):
        self.stage, self.writer = stage, None
        if path is None:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError("TensorBoard's files need tensorboardX; pip install tensorboardX") from error
        # a thread of its own writes; a kill costs these seconds of the curves
        self.writer = SummaryWriter(str(output_folder(path)), flush_secs=10)

    def scalars(self, step, values):
        """Writes numbers, {name: value}, of `step`."""
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def sample_grid(self, step, picture):
        """Writes a sample grid, H x W x 3 uint8."""
        if self.writer:
            self.writer.add_image(f"{self.stage}/samples", np.asarray(picture), step, dataformats="HWC")

    def close(self):
        """Writes what is left and closes the file."""
        if self.writer:
            self.writer.close()
