"""Imports Jittor with the environment that it needs: `from jiidm.system.runtime import jt, nn`.

No other module writes to the environment; only host.py and cuda_home.py read it too. What the user has set stays. What
is set here is withdrawn after the import, so child processes start from the user's own environment. JIIDM_DEVICE says
where to compute: auto (the default), cpu (does not even load CUDA) or cuda.
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
from collections.abc import Iterator
from pathlib import Path

from jiidm.system.compiling import faster_core, faster_kernels, unpack_onednn
from jiidm.system.cuda_home import find_cuda
from jiidm.system.errors import InputError, SetupError
from jiidm.system.host import find_faults, is_under_mpi, short_hash, write_python_config

_ALGORITHMS = 1 << 20  # that are remembered; beyond Jittor's 100, cuDNN would be asked again at every call
_WORKSPACE = 0.05  # of the GPU's memory for a convolution, at most; Jittor keeps two, each up to a quarter by default
_ONEDNN = re.compile(r"lib(dnnl|mkldnn)[.]so")


def _choose_settings():
    """The variables for Jittor's import, and why it does without CUDA (None where it uses CUDA)."""
    reason = None
    if os.environ.get("JIIDM_DEVICE") == "cpu":
        wanted, reason = {}, "JIIDM_DEVICE is cpu"
    elif "nvcc_path" in os.environ:
        wanted, reason = {}, None if os.environ["nvcc_path"] else "nvcc_path is empty in the environment"
    else:
        wanted, reason = find_cuda()
    wanted["FIX_TORCH_ERROR"] = "0"  # else Jittor imports torch wherever it is installed
    wanted["log_silent"] = "1"  # hides information and warnings, not errors
    wanted["JPY_PARENT_PID"] = str(os.getppid())  # else Jittor takes Ctrl-C over, and ends the process with code 1
    wanted["python_config_path"] = write_python_config()
    if not is_under_mpi():
        wanted["use_mpi"] = "0"  # else a broken mpicc on PATH stops the import
    settings = {name: value for name, value in wanted.items() if name not in os.environ}
    if "cc_flags" in wanted and "cc_flags" in os.environ:
        settings["cc_flags"] = f"{wanted['cc_flags']} {os.environ['cc_flags']}"
    if reason:
        settings["nvcc_path"] = ""  # else Jittor takes any nvcc it finds, and fails where its libraries are missing
    # Jittor recompiles its core and ends the process when one of these changes between two runs. Each combination gets
    # a cache of its own. Jittor's default name would be the git branch that its folder lies in.
    flags = [{**os.environ, **settings}.get(name, "") for name in ("nvcc_path", "cc_flags", "cc_path", "enable_lto")]
    if "cache_name" not in os.environ:
        settings["cache_name"] = f"jiidm2-{short_hash(flags)}" if any(flags) else "jiidm2-cpu"
    return settings, reason


@contextlib.contextmanager
def _environment(settings):
    """Context with `settings` in the environment; restores it afterwards, without what Jittor has added."""
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _no_stdout():
    """Context without standard output, where Jittor and its child processes report the compilation."""
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


def _describe_first_import(lock_path):
    """What the first import is going to do: compile, or wait for a process that does."""
    with open(lock_path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "another process is compiling with Jittor; waiting for it ..."
    return "compiling Jittor's core with g++ for this machine, once, about 2 minutes ..."


def _import_jittor():
    """Imports Jittor; returns the module, the folder of its cache, and why it has no CUDA (None where it has)."""
    found = find_faults()
    if found:
        lines = "".join(f"\n- {fault}\n  cure: {cure}" for fault, cure in found)
        raise SetupError(f"Jittor cannot work here:{lines}")
    restarted = os.environ.pop("JIIDM_RESTARTED", None)
    settings, reason = _choose_settings()
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
                _say(_describe_first_import(lock.lock_path))
            unpack_onednn(jittor_utils.home())
            with faster_core(jittor_utils, cache):
                import jittor
            if first:
                compiled.touch()
                _say(f"done in {time.time() - start:.0f} s")
    except SystemExit:  # Jittor has recompiled a part of itself that was already loaded, and has to start again
        if restarted or sys.orig_argv[1:2] in ([], ["-"]) or "ipykernel" in sys.modules:
            raise RuntimeError("Jittor has recompiled itself after a change of the compiler; run this again") from None
        os.environ["JIIDM_RESTARTED"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    if interrupt is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, interrupt)  # Jittor's own handler ends the process without KeyboardInterrupt
    if reason is None and not jittor.has_cuda:
        reason = "Jittor finds no GPU"
    if reason is None and jittor.cudnn:
        jittor.cudnn.set_algorithm_cache_size(_ALGORITHMS)
        jittor.cudnn.set_max_workspace_ratio(_WORKSPACE)
    jittor.flags.use_cuda = int(reason is None)
    faster_kernels(jittor, cache)
    if "log_silent" in settings:
        jittor.flags.log_silent = 0  # warnings are about our own code from here on
    return jittor, cache, reason


def _say(line):
    """Prints a line on standard error."""
    print(f"jiidm: {line}", file=sys.stderr, flush=True)


jt, _cache, cuda_reason = _import_jittor()
from jittor import nn  # noqa: E402, F401


def device_name() -> str:
    """Returns where Jittor computes now: "cpu" or "cuda"."""
    return "cuda" if jt.flags.use_cuda else "cpu"


def transposed(x: "jt.Var", *axes: int) -> "jt.Var":
    """`x.transpose(*axes)`. On CUDA Jittor's own runs on the CPU where cutt is missing.

    Args:
        x: of any shape.
        axes: all of its axes, in their new order.

    Returns:
        The transposed Var, of x's dtype.
    """
    return jt.fuse_transpose(x, axes) if jt.flags.use_cuda else x.transpose(*axes)


def use_device(name: str) -> str:
    """Chooses the device to compute on from now on.

    Args:
        name: "cpu", "cuda", or "auto" (CUDA where it works).

    Returns:
        "cpu" or "cuda".

    Raises:
        InputError: another name, or "cuda" where it does not work.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device {name!r}: expected auto, cpu or cuda")
    if name == "cuda" and cuda_reason:
        raise InputError(f"device cuda: {cuda_reason}; use --device cpu, or run `jiidm doctor` to see what is missing")
    with jt.flag_scope(log_silent=1):
        jt.flags.use_cuda = int(name != "cpu" and not cuda_reason)
    return device_name()


@functools.cache
def onednn_flags() -> dict[str, int] | None:
    """Returns Jittor's `compile_options` for an operation that calls oneDNN; None where Jittor has not loaded it."""
    loaded = Path("/proc/self/maps").read_text().splitlines()
    library = next((Path(line.split()[-1]) for line in loaded if _ONEDNN.search(line)), None)
    if library is None:
        return None
    return {f'FLAGS: -I"{library.parent.parent / "include"}" -L"{library.parent}" -lmkldnn ': 1}


@contextlib.contextmanager
def announce_compilation(what: str) -> Iterator[None]:
    """Context that says on standard error that kernels are compiled, unless it has ended well here before.

    Jittor compiles an operation when it first runs, and keeps the kernel until the compiler or its flags change.

    Args:
        what: what needs the kernels, such as "the networks".
    """
    key = short_hash(what, jt.__version__, jt.flags.cc_flags, jt.flags.nvcc_flags, device_name())
    known = _cache / f"jiidm-used-{key}"
    if not known.exists():
        _say(f"first use of {what} on this machine: compiling its kernels, a minute or two (once)")
    yield
    known.touch()


use_device(os.environ.get("JIIDM_DEVICE", "auto"))
