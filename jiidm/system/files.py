"""Files that are either whole or absent."""
import contextlib
import os
from pathlib import Path

from jiidm.system.errors import InputError


@contextlib.contextmanager
def written_whole(path):
    """Gives a temporary path beside `path`; when the block ends well the file is flushed to disk and renamed to it.

    Raises InputError when it cannot be written. After an exception the temporary file is gone and `path` is as it was.
    The suffix of `path` is kept, so that a writer that goes by the suffix (PIL) works.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        temporary.touch()
        rights = temporary.stat().st_mode  # those of any new file; safetensors would make its files private
        yield temporary
        os.chmod(temporary, rights)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # the new name, too, is to outlive a loss of power
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def output_folder(path):
    """Makes the folder `path` where it is missing and checks that files can be written in it; raises InputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot write there ({error.strerror}); choose another output folder") from error
    return path
