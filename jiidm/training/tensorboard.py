"""A run's numbers and sheets for TensorBoard, for those who ask for it."""
import numpy as np

from jiidm.system.errors import InputError
from jiidm.system.files import output_folder


class NoWriter:
    """Takes what `TensorboardWriter` takes and keeps nothing."""

    def scalars(self, step, values):
        """Nothing is written."""

    def sheet(self, step, picture):
        """Nothing is written."""

    def close(self):
        """There is nothing to close."""


class TensorboardWriter:
    """Writes event files into the folder `path`, for TensorBoard to show; `stage` comes before every name."""

    def __init__(self, path, stage):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise InputError(
                "TensorBoard's files need tensorboardX; pip install tensorboardX"
            ) from error
        self.stage = stage
        # a thread of its own writes; a kill costs these seconds of the curves
        self.writer = SummaryWriter(str(output_folder(path)), flush_secs=10)

    def scalars(self, step, values):
        """Writes numbers, {name: value}, after `step` steps."""
        for name, value in values.items():
            self.writer.add_scalar(f"{self.stage}/{name}", float(value), step)

    def sheet(self, step, picture):
        """Writes a sheet of samples, H x W x 3 uint8."""
        self.writer.add_image(f"{self.stage}/samples", np.asarray(picture), step, dataformats="HWC")

    def close(self):
        """Writes what is left and closes the file."""
        self.writer.close()


def open_writer(path, stage):
    """The writer of a stage ("autoencoder", "unet") into the folder `path`; one that keeps nothing where it is None.

    Raises InputError where tensorboardX is not installed or the folder cannot be written.
    """
    return NoWriter() if path is None else TensorboardWriter(path, stage)
