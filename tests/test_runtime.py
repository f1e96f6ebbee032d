"""What is settled before Jittor is imported. Faults are simulated: nothing is uninstalled and no GPU is needed."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jiidm.system import cuda_home, runtime
from jiidm.system.errors import InputError

ROOT = Path(__file__).parents[1]


def run(*arguments, path="", modules="", **variables):
    """Runs Python on `arguments`, with `path` in front of PATH and `modules` in front of the packages."""
    environment = {**os.environ, **variables, "PYTHONPATH": os.pathsep.join(filter(None, [str(modules), str(ROOT)]))}
    environment["PATH"] = f"{path}{os.pathsep}{environment['PATH']}"
    return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True)


def script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_numpy(folder):
    (folder / "numpy").mkdir()
    (folder / "numpy" / "__init__.py").write_text("__version__ = '2.1.0'\n")
    return folder


# ---- the import

def test_stray_nvcc_and_mpicc_do_no_harm_and_the_environment_stays(tmp_path):
    script(tmp_path / "nvcc", "echo 'Cuda compilation tools, release 12.2, V12.2.140'")
    script(tmp_path / "mpicc", "exit 1")
    done = run("-c", "import os; before = dict(os.environ); from jiidm.system.runtime import jt, nn, device_name\n"
                     "assert dict(os.environ) == before\n"
                     "print(device_name(), float(jt.ones(3).sum().item()))", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout in ("cpu 3.0\n", "cuda 3.0\n")


def test_interrupt_is_an_exception(tmp_path):
    """Jittor's own handler of Ctrl-C would end the process; jittor is a stand-in that installs such a handler. Python's
    own is set first: there is none where the signal is ignored, as in a script's background job."""
    stand_in(tmp_path, "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)")
    done = run("-c", "import os, signal\n"
                     "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
                     "import jiidm.system.runtime\n"
                     "try: os.kill(os.getpid(), signal.SIGINT)\n"
                     "except KeyboardInterrupt: print('caught')", modules=tmp_path)
    assert done.stdout == "caught\n", done.stderr


def test_jittor_asking_to_be_run_again_is_run_again(tmp_path):
    stand_in(tmp_path, f"import os, sys\nif not os.path.exists({str(tmp_path / 'second')!r}):\n"
                       f"    open({str(tmp_path / 'second')!r}, 'w'); sys.exit(0)\n")
    done = run("-c", "import jiidm.system.runtime, os; print('whole', 'JIIDM_RESTARTED' in os.environ)",
               modules=tmp_path)
    assert done.stdout == "whole False\n", done.stderr


def stand_in(folder, text):
    """A package `jittor` that runs `text` and has what the runtime asks of Jittor."""
    (folder / "jittor").mkdir()
    (folder / "jittor" / "nn.py").touch()
    (folder / "jittor" / "__init__.py").write_text(
        f"{text}\nimport contextlib, types\nhas_cuda, flags = 0, types.SimpleNamespace(use_cuda=0, cc_path='')\n"
        "flag_scope = lambda **_: contextlib.nullcontext()\n")


def test_missing_jittor_offline_names_its_cure():
    done = run("-c", "import sys; sys.modules['jittor_offline'] = None; import jiidm.system.runtime")
    assert done.returncode == 1
    assert "cure: pip install jittor_offline==0.0.7" in done.stderr


def test_numpy_2_names_its_cure(tmp_path):
    done = run("-c", "import jiidm.system.runtime", modules=fake_numpy(tmp_path))
    assert done.returncode == 1
    assert "numpy 2.1.0" in done.stderr
    assert "cure: pip install 'numpy<2'" in done.stderr


# ---- the settings

@pytest.fixture
def plain(monkeypatch):
    """An environment in which the user has set nothing of ours."""
    for name in ("nvcc_path", "cc_flags", "cc_path", "enable_lto", "cache_name", "use_mpi", "log_silent",
                 "JIIDM_DEVICE", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime, "find_cuda", lambda: ({}, "no GPU"))
    return monkeypatch


def test_without_a_gpu_jittor_sees_no_nvcc_and_no_mpi(plain):
    settings, reason = runtime._choose_settings()
    assert (settings["nvcc_path"], settings["use_mpi"], settings["cache_name"]) == ("", "0", "jiidm2-cpu")
    assert reason == "no GPU"


def test_what_the_user_has_set_stands(plain):
    for name, value in {"nvcc_path": "/opt/their/nvcc", "use_mpi": "1", "cache_name": "theirs"}.items():
        plain.setenv(name, value)
    settings, reason = runtime._choose_settings()
    assert not {"nvcc_path", "use_mpi", "cache_name"} & set(settings)
    assert reason is None


def test_cpu_on_request(plain):
    plain.setattr(runtime, "find_cuda", lambda: pytest.fail("CUDA was looked for"))
    plain.setenv("JIIDM_DEVICE", "cpu")
    settings, reason = runtime._choose_settings()
    assert settings["nvcc_path"] == ""
    assert "JIIDM_DEVICE" in reason


def test_flags_of_the_user_and_of_cuda_are_both_kept_in_a_cache_of_their_own(plain):
    plain.setenv("cc_flags", "-g")
    plain.setattr(runtime, "find_cuda", lambda: ({"nvcc_path": "/c/nvcc", "cc_flags": "-Da=b"}, None))
    settings, _ = runtime._choose_settings()
    assert settings["cc_flags"] == "-Da=b -g"
    assert settings["cache_name"].startswith("jiidm2-") and settings["cache_name"] != "jiidm2-cpu"


def test_under_mpirun_mpi_is_left_to_jittor(plain):
    plain.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert "use_mpi" not in runtime._choose_settings()[0]


# ---- devices and messages

def test_use_device():
    assert runtime.use_device("cpu") == "cpu" == runtime.device_name()
    with pytest.raises(InputError, match="'gpu'.*expected auto, cpu or cuda"):
        runtime.use_device("gpu")
    if runtime.cuda_reason:
        with pytest.raises(InputError, match="device cuda: "):
            runtime.use_device("cuda")
    assert runtime.use_device("auto") == ("cpu" if runtime.cuda_reason else "cuda")


def test_compilation_is_announced_until_it_has_ended_well(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "_cache", tmp_path)
    with pytest.raises(ZeroDivisionError), runtime.announce_compilation("the UNet"):
        raise ZeroDivisionError
    with runtime.announce_compilation("the UNet"):
        pass
    assert capsys.readouterr().err.count("jiidm: first use of the UNet on this machine") == 2
    with runtime.announce_compilation("the UNet"):
        pass
    assert capsys.readouterr().err == ""


# ---- CUDA

@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A stand-in of a CUDA 13 toolkit with cuDNN 9; the only one to be found."""
    root = tmp_path / "toolkit"
    for folder in ("include/cccl/cub", "lib64", "bin"):
        (root / folder).mkdir(parents=True)
    (root / "include/cccl/cub/cub.cuh").touch()
    for header, library in cuda_home._NEEDED:
        (root / "include" / header.replace("_real", "")).write_text("theirs")
        (root / "lib64" / f"lib{library}.so.13").touch()
    for part in ("ops", "cnn"):
        (root / "lib64" / f"libcudnn_{part}.so.9").touch()
    script(root / "bin" / "nvcc", f"echo '#$ TOP={root}'; echo 'release 13.0'; echo \"args $*\"")
    monkeypatch.setenv("CUDA_HOME", str(root))
    monkeypatch.setattr(cuda_home, "make_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cuda_home, "explain_no_gpu", lambda major=0: None)
    monkeypatch.setattr(cuda_home, "_preload", lambda home: None)
    monkeypatch.setattr(cuda_home, "_find_packages", list)
    return root


def test_cuda_13_gets_a_home(toolkit):
    settings, reason = cuda_home.find_cuda()
    assert reason is None
    home = Path(settings["nvcc_path"]).parents[1]
    for shim in ("npp.h", "cudnn.h", "cub/cub.cuh"):
        assert (home / "include" / shim).read_text() == (cuda_home.SHIMS / shim).read_text()
    assert (home / "include" / "cudnn_real.h").read_text() == "theirs"
    for name in ("libcudart.so", "libcudart.so.13", "libcudnn_ops_infer.so", "libcudnn_cnn_train.so"):
        assert (home / "lib64" / name).exists()
    answer = subprocess.run([home / "bin" / "nvcc", "-std=c++14", "a b"], capture_output=True, text=True).stdout
    assert "args -std=c++17 a b" in answer
    assert cuda_home.find_cuda() == (settings, None)


# a stand-in of cuDNN 9 that does not support algorithm 6
CUDNN = """
#pragma once
#include <cstddef>
#define CUDNN_MAJOR 9
enum cudnnStatus_t { CUDNN_STATUS_SUCCESS, CUDNN_STATUS_BAD_PARAM = 2000, CUDNN_STATUS_NOT_SUPPORTED = 3000 };
#define CUDNN_STATUS_CATEGORY(status) ((status) / 1000 * 1000)
enum cudnnDataType_t { CUDNN_DATA_FLOAT, CUDNN_DATA_HALF, CUDNN_DATA_BFLOAT16 };
enum cudnnMathType_t {
    CUDNN_DEFAULT_MATH, CUDNN_TENSOR_OP_MATH, CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION, CUDNN_FMA_MATH };
enum cudnnConvolutionMode_t { MODE };
enum cudnnConvolutionFwdAlgo_t { CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM = 1 };
enum cudnnConvolutionBwdDataAlgo_t { CUDNN_CONVOLUTION_BWD_DATA_ALGO_1 = 1 };
enum cudnnConvolutionBwdFilterAlgo_t { CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1 = 1 };
struct Convolution { cudnnMathType_t math; cudnnDataType_t compute; };
typedef Convolution* cudnnConvolutionDescriptor_t;
typedef void* cudnnHandle_t;
struct Found { cudnnConvolutionFwdAlgo_t algo; cudnnStatus_t status; cudnnMathType_t mathType; };
inline cudnnStatus_t cudnnSetConvolutionNdDescriptor(cudnnConvolutionDescriptor_t d, int, const int*, const int*,
        const int*, cudnnConvolutionMode_t, cudnnDataType_t t) { d->compute = t; return CUDNN_STATUS_SUCCESS; }
inline cudnnStatus_t cudnnSetConvolutionMathType(cudnnConvolutionDescriptor_t d, cudnnMathType_t t) {
    d->math = t; return CUDNN_STATUS_SUCCESS; }
inline cudnnStatus_t cudnnGetConvolutionMathType(cudnnConvolutionDescriptor_t d, cudnnMathType_t* t) {
    *t = d->math; return CUDNN_STATUS_SUCCESS; }
inline cudnnStatus_t cudnnFindConvolutionForwardAlgorithmEx(cudnnHandle_t, int, const void*, int, const void*,
        cudnnConvolutionDescriptor_t, int, void*, int, int* n, Found* found, void*, size_t) {
    found[0] = {cudnnConvolutionFwdAlgo_t(6), CUDNN_STATUS_SUCCESS, CUDNN_DEFAULT_MATH};
    found[1] = {cudnnConvolutionFwdAlgo_t(1), CUDNN_STATUS_SUCCESS, CUDNN_TENSOR_OP_MATH};
    *n = 2; return CUDNN_STATUS_SUCCESS; }
inline cudnnStatus_t cudnnGetConvolutionForwardWorkspaceSize(cudnnHandle_t, int, int, cudnnConvolutionDescriptor_t, int,
        cudnnConvolutionFwdAlgo_t algo, size_t* bytes) {
    *bytes = 1000 / algo; return algo == 6 ? cudnnStatus_t(3003) : CUDNN_STATUS_SUCCESS; }
inline cudnnStatus_t cudnnConvolutionForward(cudnnHandle_t, const void*, int, const void*, int, const void*,
        cudnnConvolutionDescriptor_t, cudnnConvolutionFwdAlgo_t algo, void*, size_t bytes, const void*, int, void* y) {
    *(int*)y = algo;
    return algo == 6 ? cudnnStatus_t(3003) : bytes < 1000 / algo ? CUDNN_STATUS_BAD_PARAM : CUDNN_STATUS_SUCCESS; }
"""
CONVOLUTIONS = """
#include "cudnn.h"
#include <cstdio>
#include <initializer_list>
int main() {
    for (auto type : {CUDNN_DATA_FLOAT, CUDNN_DATA_BFLOAT16}) {
        Convolution d = {CUDNN_DEFAULT_MATH};
        cudnnSetConvolutionNdDescriptor(&d, 2, 0, 0, 0, MODE, type);
        Found found[8]; int n, used; size_t bytes;
        cudnnFindConvolutionForwardAlgorithmEx(nullptr, 0, 0, 0, 0, &d, 0, 0, 8, &n, found, 0, 0);
        printf("%d %d %d %d;", d.compute, d.math, found[0].status, found[1].status);
        for (int number : {6, 2}) {
            auto algo = cudnnConvolutionFwdAlgo_t(number);
            auto status = cudnnGetConvolutionForwardWorkspaceSize(nullptr, 0, 0, &d, 0, algo, &bytes);
            printf(" %d %zu", status, bytes);
            status = cudnnConvolutionForward(nullptr, 0, 0, 0, 0, 0, &d, algo, 0, bytes, 0, 0, &used);
            printf(" %d %d", status, used);
        }
        puts("");
    }
}
"""


def test_a_convolution_takes_an_algorithm_that_supports_its_type(tmp_path):
    (tmp_path / "cudnn_real.h").write_text(CUDNN)
    (tmp_path / "main.cc").write_text(CONVOLUTIONS)
    subprocess.run(["g++", "-std=c++14", "-I", cuda_home.SHIMS, "-I", tmp_path, tmp_path / "main.cc", "-o",
                    tmp_path / "main"], check=True)
    plain, narrow = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout.splitlines()
    used = " 0 1000 0 1 0 500 0 2"  # of 6 and 2: status and bytes of the workspace, status and algorithm of the run
    assert plain == "0 0 0 0;" + used
    assert narrow == "0 2 3000 0;" + used  # compute type, math type, whether what was found counts


def test_what_a_cuda_13_lacks_is_named(toolkit):
    (toolkit / "include" / "cudnn.h").unlink()
    if any(Path("/usr/include").rglob("cudnn.h")):
        pytest.skip("cuDNN is installed in /usr")
    settings, reason = cuda_home.find_cuda()
    assert settings == {}
    assert reason == "CUDA 13, but no cudnn.h; pip install nvidia-cudnn-cu13"
    assert not list(toolkit.parent.glob("*cuda-home-*"))


def test_older_cuda_is_left_to_jittor_if_it_has_its_libraries(toolkit):
    nvcc = script(toolkit / "bin" / "nvcc", f"echo '#$ TOP={toolkit}'; echo 'release 12.2'")
    settings, reason = cuda_home.find_cuda()
    assert (settings, reason) == ({}, f"{nvcc} has no libcudart.so in {toolkit}/lib64")
    (toolkit / "lib64" / "libcudart.so").touch()
    assert cuda_home.find_cuda() == ({"nvcc_path": str(nvcc), "use_cutlass": "0"}, None)


# ---- the doctor

def test_doctor_finds_this_machine_well():
    done = run(ROOT / "tools" / "doctor.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GFLOP/s" in done.stdout and "all is well" in done.stdout


def test_doctor_reports_a_fault_without_jittor(tmp_path):
    done = run(ROOT / "tools" / "doctor.py", modules=fake_numpy(tmp_path))
    assert done.returncode == 1
    assert "fault: numpy 2.1.0" in done.stdout and "cure: pip install 'numpy<2'" in done.stdout
