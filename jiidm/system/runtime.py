"""Jittor, imported with everything settled that it asks of the environment: `from jiidm.system.runtime import jt, nn`.

No other module writes to the environment, and only host.py and cuda_home.py, its two halves, read it as well. What the
user has set stands, and what is set here is withdrawn after the import, so that child processes start from the user's
own environment. JIIDM_DEVICE says where to compute: auto (the default), cpu (which keeps CUDA out altogether) or cuda.
"""
import contextlib
import fcntl
import functools
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from jiidm.system.cuda_home import cuda_settings
from jiidm.system.errors import InputError, SetupError
from jiidm.system.host import digest, faults, python_config, under_mpi

_ONEDNN = re.compile(r"lib(dnnl|mkldnn)[.]so")


def _settings():
    """The variables with which to import Jittor, and why it is to do without CUDA (None where it is to use it)."""
    reason = None
    if os.environ.get("JIIDM_DEVICE") == "cpu":
        wanted, reason = {}, "JIIDM_DEVICE is cpu"
    elif "nvcc_path" in os.environ:
        wanted, reason = {}, None if os.environ["nvcc_path"] else "nvcc_path is empty in the environment"
    else:
        wanted, reason = cuda_settings()
    wanted["FIX_TORCH_ERROR"] = "0"  # else Jittor imports torch wherever it is installed
    wanted["log_silent"] = "1"  # hides information and warnings, not errors
    wanted["JPY_PARENT_PID"] = str(os.getppid())  # else Jittor takes Ctrl-C over, and ends the process with code 1
    wanted["python_config_path"] = python_config()
    if not under_mpi():
        wanted["use_mpi"] = "0"  # else a broken mpicc on PATH stops the import
    settings = {name: value for name, value in wanted.items() if name not in os.environ}
    if "cc_flags" in wanted and "cc_flags" in os.environ:
        settings["cc_flags"] = f"{wanted['cc_flags']} {os.environ['cc_flags']}"
    if reason:
        settings["nvcc_path"] = ""  # else Jittor takes any nvcc it finds, and fails where its libraries are missing
    # Jittor recompiles its core and ends the process when one of these changes between two runs: a cache of its own for
    # each combination keeps them apart. Jittor's default would be the name of the git branch its folder lies in.
    flags = [{**os.environ, **settings}.get(name, "") for name in ("nvcc_path", "cc_flags", "cc_path", "enable_lto")]
    if "cache_name" not in os.environ:
        settings["cache_name"] = f"jiidm-{digest(flags)}" if any(flags) else "jiidm-cpu"
    return settings, reason


@contextlib.contextmanager
def _environment(settings):
    """Adds `settings` to the environment and at the end restores it, without what Jittor itself has put there."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _no_stdout():
    """Standard output goes nowhere, that of child processes too: there Jittor reports its compilation."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _compiling_core(lock_path):
    """What the first import is about to do: compile, or wait for a process that holds Jittor's lock and compiles."""
    with open(lock_path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process is compiling with Jittor; waiting for it ..."
    return "compiling Jittor's core with g++ for this machine, once, about 2 minutes ..."


def _import_jittor():
    """Imports Jittor; returns the module, the folder of its cache, and why it has no CUDA (None where it has)."""
    found = faults()
    if found:
        lines = "".join(f"\n- {fault}\n  cure: {cure}" for fault, cure in found)
        raise SetupError(f"Jittor cannot work here:{lines}")
    restarted = os.environ.pop("JIIDM_RESTARTED", None)
    settings, reason = _settings()
    interrupt = signal.getsignal(signal.SIGINT)
    try:
        with _environment(settings), _no_stdout():
            import jittor_utils
            from jittor_utils import lock
            if "log_silent" in settings:
                jittor_utils.LOG.log_silent = 0  # in Python this would hide errors too
            cache = Path(jittor_utils.cache_path)
            compiled = cache / "jiidm-core"  # written last, so that an interrupted compilation is announced again
            start = time.time()
            first = not compiled.exists()
            if first:
                _say(_compiling_core(lock.lock_path))
            import jittor
            if first:
                compiled.touch()
                _say(f"done in {time.time() - start:.0f} s")
    except SystemExit:  # Jittor has recompiled a part of itself that was loaded already, and wants to be run anew
        if restarted or sys.orig_argv[1:2] in ([], ["-"]) or "ipykernel" in sys.modules:
            raise RuntimeError("Jittor has recompiled itself after a change of the compiler; run this again") from None
        os.environ["JIIDM_RESTARTED"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if interrupt is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)  # Jittor's own handler ends the process without KeyboardInterrupt
    if reason is None and not jittor.has_cuda:
        reason = "Jittor finds no GPU"
    jittor.flags.use_cuda = int(reason is None)
    if "log_silent" in settings:
        jittor.flags.log_silent = 0  # from here on a warning is about our own doing
    return jittor, cache, reason


def _say(line):
    print(f"jiidm: {line}", file=sys.stderr, flush=True)


jt, _cache, cuda_reason = _import_jittor()
from jittor import nn  # noqa: E402, F401


def device_name():
    """Where Jittor computes now: "cpu" or "cuda"."""
    return "cuda" if jt.flags.use_cuda else "cpu"


def use_device(name):
    """Computes on `name` from here on: "cpu", "cuda", or "auto" (CUDA where there is one); returns the device's name.

    Raises InputError for another name, and for "cuda" where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and cuda_reason:
        raise InputError(f"device cuda: {cuda_reason}; use --device cpu, or run tools/doctor.py for what is missing")
    with jt.flag_scope(log_silent=1):
        jt.flags.use_cuda = int(name != "cpu" and not cuda_reason)
    return device_name()


@functools.cache
def onednn_flags():
    """Jittor's `compile_options` for an operation that calls the oneDNN it has loaded; None where it has none."""
    loaded = Path("/proc/self/maps").read_text().splitlines()
    library = next((Path(line.split()[-1]) for line in loaded if _ONEDNN.search(line)), None)
    if library is None:
        return None
    return {f'FLAGS: -I"{library.parent.parent / "include"}" -L"{library.parent}" -lmkldnn ': 1}


@contextlib.contextmanager
def announce_compilation(what):
    """Says on standard error that `what` compiles its kernels, unless a block for it has ended well here before.

    Jittor compiles an operation when it first runs and keeps the kernels until the compiler or its flags change.
    """
    known = _cache / f"jiidm-used-{digest(what, jt.__version__, jt.flags.cc_flags, jt.flags.nvcc_flags, device_name())}"
    if not known.exists():
        _say(f"first use of {what} on this machine: compiling its kernels, a minute or two (once)")
    yield
    known.touch()


use_device(os.environ.get("JIIDM_DEVICE", "auto"))
