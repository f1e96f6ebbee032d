"""The exit codes of the command-line tools."""
import contextlib
import os
import sys
import time
import traceback
import warnings

from jiidm.system.errors import InputError, SetupError, Stopped


def run_tool(main):
    """Runs the `main` of a command-line tool and turns its outcome into an exit code.

    `main` returns an exit code (None is 0). An `InputError` or a `SetupError` is printed and gives 2, Ctrl-C gives 130;
    a `Stopped` is printed and gives 128 and its signal: 130 for Ctrl-C, 143 for SIGTERM, and 0 for the end of its time.
    A warning is one line.
    """
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        sys.exit(main() or 0)
    except (InputError, SetupError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        with contextlib.suppress(OSError):  # nobody may be reading any more
            sys.stdout.flush()
            print(stop, file=sys.stderr, flush=True)
        if not stop.signal:
            sys.exit(0)
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
