"""The table of a training run: a CSV of one row for each logged step."""
import csv
from pathlib import Path

from jiidm.system.errors import InputError
from jiidm.system.files import written_whole


class Table:
    """Rows are flushed at once; those after the step to go on from, and one cut off in its middle, are dropped.

    Raises InputError where it cannot be written, as on a full disk.
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
                raise self._unwritten(error) from error

    def write(self, **values):
        """Adds a row."""
        try:
            self.writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
            self.file.flush()
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error):
        return InputError(f"{self.path}: cannot be written ({error.strerror or error})")


def _rows(path, columns, last):
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if row.keys() == set(columns) and None not in row.values()]
    return [row for row in rows if row["step"].isdigit() and int(row["step"]) <= last]
