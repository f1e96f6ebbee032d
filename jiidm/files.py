"""Errors that a user can mend, and files that are either whole or absent."""
import contextlib
import os
import sys
import time
import traceback
from pathlib import Path


class InputError(ValueError):
    """A mistake in what the user gave: one line that names the file and the value, what was expected, what to do."""


class SetupError(RuntimeError):
    """Something that this machine lacks: a line for each fault and its cure."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: `signal` is its number, the text what is to be said of it."""

    def __init__(self, signal, text="interrupted"):
        super().__init__(text)
        self.signal = signal


def run_tool(main):
    """Runs the `main` of a command-line tool and turns its outcome into an exit code.

    `main` returns an exit code (None is 0). An `InputError` or a `SetupError` is printed and gives 2, Ctrl-C gives 130;
    a `Stopped` is printed and gives 128 and its signal: 130 for Ctrl-C, 143 for SIGTERM.
    """
    try:
        sys.exit(main() or 0)
    except (InputError, SetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            sys.stdout.flush()
            print(stop, file=sys.stderr, flush=True)
        os._exit(128 + stop.signal)  # Python's own exit may wait for processes in which Jittor still compiles
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def run_processes(main):
    """`run_tool` for a tool that may run as several processes (mpirun): what fails in one of them ends them all.

    MPI's own end waits for every process, and the others may be waiting for this one; so it leaves without it, and
    mpirun ends the others.
    """
    def patient():
        try:
            return main()
        except BaseException:
            if _rank():
                time.sleep(2)  # what fails everywhere alike is said by the first process alone
            raise

    try:
        run_tool(patient)
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if _rank() is None or not code:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _rank():
    """This process's number under mpirun; None without, or where Jittor has not come to be imported."""
    jittor = sys.modules.get("jittor")
    return jittor.rank if getattr(jittor, "in_mpi", False) else None


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
