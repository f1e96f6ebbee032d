"""Files that are either whole or absent."""
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jiidm.system.errors import InputError


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Context for writing a file whole or not at all.

    It gives a temporary path beside `path`, with the same suffix. When the block ends well, the file is flushed to disk
    and renamed to `path`. After an exception the temporary file is gone and `path` is unchanged.

    Raises:
        InputError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        rights = temporary.stat().st_mode  # those of any new file; some writers make theirs private
        yield temporary
        os.chmod(temporary, rights)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # so that the new name survives a power failure too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: str | Path, expected: str) -> str:
    """Reads a text file in UTF-8; raises InputError, which says what was `expected`, where it cannot be read."""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise InputError(f"{path}: cannot be read ({reason}); expected {expected}") from error


def output_folder(path: str | Path) -> Path:
    """Creates a folder where it is missing, and checks that files can be written in it; raises InputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); choose another output folder") from error
    return path
