"""Checks whether this machine can run jiidm, measures its speed, and says what to do about each fault."""
import argparse
import importlib
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jiidm.system.host import find_compiler, find_faults


def print_line(name, text):
    """Prints a fact."""
    print(f"{name:<10}{text}", flush=True)


def compiler_version():
    """Returns the path and the version of the C++ compiler."""
    path = shutil.which(find_compiler())
    if path is None:
        return "none"
    answer = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
    return f"{path}, {answer.splitlines()[0] if answer else 'which does not answer'}"


def numpy_version():
    """Returns the version of numpy, or why it cannot be imported."""
    try:
        return importlib.import_module("numpy").__version__
    except ImportError as error:
        return f"cannot be imported ({error})"


def onednn_version(jittor_utils):
    """Returns the version in the headers of the oneDNN that Jittor has unpacked; None where there is none."""
    headers = Path(jittor_utils.home(), ".cache", "jittor", "mkl").glob("dnnl*/include/**/dnnl_version.h")
    for header in headers:
        numbers = dict(re.findall(r"#define DNNL_VERSION_(MAJOR|MINOR|PATCH)\s+(\d+)", header.read_text()))
        if len(numbers) == 3:
            return "{MAJOR}.{MINOR}.{PATCH}".format(**numbers)
    return None


def conv_gflops(jt, nn):
    """Returns the speed of a 3x3 convolution, 256 channels at 64x64, in 10^9 operations a second: the best of five."""
    x, weight = jt.randn(1, 256, 64, 64), jt.randn(256, 256, 3, 3)
    seconds = []
    for _ in range(6):  # the first one compiles
        jt.sync_all(True)
        start = time.perf_counter()
        nn.conv2d(x, weight, padding=1).sync()
        jt.sync_all(True)
        seconds.append(time.perf_counter() - start)
    return 2 * 256 * 256 * 9 * 64 * 64 / min(seconds[1:]) / 1e9


def conv_error(jt, nn, np):
    """Returns the largest relative error of a 3x3 convolution and its two gradients, compared with numpy."""
    rng = np.random.default_rng(0)
    x, weight, up = (rng.standard_normal(shape) for shape in ((2, 4, 6, 7), (5, 4, 3, 3), (2, 5, 6, 7)))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, grad_padded, grad_weight = np.zeros(up.shape), np.zeros(padded.shape), np.zeros(weight.shape)
    for i in range(3):
        for j in range(3):
            window = np.s_[:, :, i:i + 6, j:j + 7]
            y += np.einsum("nchw,oc->nohw", padded[window], weight[:, :, i, j])
            grad_padded[window] += np.einsum("nohw,oc->nchw", up, weight[:, :, i, j])
            grad_weight[:, :, i, j] = np.einsum("nohw,nchw->oc", up, padded[window])
    jx, jweight = jt.array(x.astype("float32")), jt.array(weight.astype("float32"))
    jy = nn.conv2d(jx, jweight, padding=1)
    gradients = jt.grad((jy * jt.array(up.astype("float32"))).sum(), [jx, jweight])
    pairs = ((jy, y), (gradients[0], grad_padded[:, :, 1:-1, 1:-1]), (gradients[1], grad_weight))
    return max(np.abs(got.numpy() - true).max() / np.abs(true).max() for got, true in pairs)


def examine_jittor(found):
    """Imports Jittor and reports on it; appends pairs (fault, cure) to `found`."""
    try:
        import numpy as np

        from jiidm.system import runtime
    except Exception as error:
        print_line("Jittor", "cannot be imported")
        reason = str(error).strip().splitlines() or [type(error).__name__]
        found.append((f"Jittor cannot be imported: {reason[-1]}",
                      "if that is no help, remove ~/.cache/jittor and try again with JIIDM_DEVICE=cpu"))
        return
    import jittor_utils
    jt, nn = runtime.jt, runtime.nn
    print_line("Jittor", f"{jt.__version__}, cache {jittor_utils.cache_path}")
    onednn = onednn_version(jittor_utils)
    print_line("oneDNN", onednn or "none")
    if onednn is None and runtime.device_name() == "cpu":
        found.append(("Jittor has no oneDNN: convolutions on the CPU are slow",
                      "pip install jittor_offline==0.0.7, unset use_mkl, and remove ~/.cache/jittor"))
    print_line("CUDA", f"none: {runtime.cuda_reason}" if runtime.cuda_reason else f"in use, {jt.flags.nvcc_path}")
    print_line("device", runtime.device_name())
    error = conv_error(jt, nn, np)
    # cuDNN convolves with a mantissa of 10 bits (TF32)
    limit = 5e-3 if runtime.device_name() == "cuda" else 1e-4
    good = error < limit
    print_line("numbers", f"convolution, forward and backward: relative error {error:.1e}, {'good' if good else 'BAD'}")
    if not good:
        found.append((f"a convolution is wrong by {error:.1e}, more than {limit:.0e}",
                      "remove ~/.cache/jittor; if it stays, run with JIIDM_DEVICE=cpu"))
    print_line("speed", f"3x3 convolution, 256 channels, 64x64: {conv_gflops(jt, nn):.0f} GFLOP/s")


def main():
    """Prints the report; returns 1 where there is a fault."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print_line("compiler", compiler_version())
    print_line("Python", f"{platform.python_version()}, {sys.executable}")
    print_line("numpy", numpy_version())
    found = find_faults()
    if found:
        print_line("Jittor", "not tried, for the faults below")
    else:
        examine_jittor(found)
    for fault, cure in found:
        print(f"\nfault: {fault}\n cure: {cure}")
    print(f"\n{len(found)} fault{'s' if len(found) > 1 else ''}" if found else "\nall is well")
    return 1 if found else 0
