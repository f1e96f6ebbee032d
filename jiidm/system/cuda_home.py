"""Finds the CUDA for Jittor: none, the one that Jittor finds itself, or a CUDA home built here for CUDA 13.

Jittor 1.3.11 knows neither CUDA 13 nor cuDNN 9. It looks for headers and libraries in one folder only, while they often
come as packages from PyPI. The CUDA home is that one folder: links to the toolkit and the packages, the headers of
`system/cuda` in front of theirs, and an nvcc that raises the language standard. What it mends:

- npp.h is not installed with the packages; Jittor needs only its limits (cuda/npp.h)
- cuDNN 9 has no RNN v6 calls and no compute type below float32 (cuda/cudnn.h), and no *_infer and *_train libraries
- CCCL 3 dropped cub names that Jittor uses (cuda/cub/cub.cuh) and needs C++17, where Jittor asks for C++14
- cudaDeviceProp lost two fields that Jittor reads (the -D flags)
- cutt does not compile; cutlass and NCCL would be downloaded
"""
import ctypes
import glob
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from jiidm.system.host import make_cache_folder, short_hash, write_script

SHIMS = Path(__file__).parent / "cuda"
TARGET = "sbsa-linux" if platform.machine() == "aarch64" else "x86_64-linux"
SYSTEM = f"{platform.machine()}-linux-gnu"

# header and library that Jittor needs -> the package on PyPI that brings both
_NEEDED = {
    ("cuda_runtime.h", "cudart"): "nvidia-cuda-runtime",
    ("cublas_v2.h", "cublas"): "nvidia-cublas",
    ("cublasLt.h", "cublasLt"): "nvidia-cublas",
    ("curand.h", "curand"): "nvidia-curand",
    ("cufft.h", "cufft"): "nvidia-cufft",
    ("cusparse.h", "cusparse"): "nvidia-cusparse",
    ("nvrtc.h", "nvrtc"): "nvidia-cuda-nvrtc",
    ("cudnn_real.h", "cudnn"): "nvidia-cudnn-cu13",
}
# in the order of their dependencies
_PRELOADED = ("cudart", "nvJitLink", "nvrtc-builtins", "nvrtc", "cublasLt", "cublas", "cusparse", "cudnn")


def explain_no_gpu(major: int = 0) -> str | None:
    """Says why no GPU can be used, in one line.

    Args:
        major: the version of CUDA that the driver has to run. 0: any.

    Returns:
        The reason; None where the driver shows a GPU and runs that version.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver (libcuda.so.1 is not found)"
    count, version = ctypes.c_int(), ctypes.c_int()
    status = (driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
              or driver.cuDriverGetVersion(ctypes.byref(version)))
    if status:
        return f"the NVIDIA driver does not start (CUDA error {status})"
    if not count.value:
        return "the NVIDIA driver shows no GPU"
    if version.value < 1000 * major:
        return f"the driver runs CUDA {version.value // 1000} and the toolkit is CUDA {major}; update the driver"
    return None


def find_cuda() -> tuple[dict[str, str], str | None]:
    """Finds a CUDA that works.

    Returns:
        (variables for Jittor's environment, None), or ({}, why there is no CUDA).
    """
    reason = explain_no_gpu()
    if reason:
        return {}, reason
    toolkit = _find_toolkit()
    if toolkit is None:
        return {}, "a GPU, but no CUDA compiler (nvcc); install the CUDA toolkit"
    nvcc, root, major = toolkit
    reason = explain_no_gpu(major)
    if reason:  # Jittor would abort the process
        return {}, reason
    if major >= 13:
        home, reason = build_home(nvcc, root)
        reason = reason or _preload(home)
        settings = {"nvcc_path": f"{home}/bin/nvcc", "use_cutt": "0", "use_nccl": "0",
                    "cc_flags": "-DcomputeMode=major -DclockRate=minor"}
    else:
        lib = f"/usr/lib/{SYSTEM}" if nvcc == "/usr/bin/nvcc" else Path(os.path.realpath(nvcc)).parents[1] / "lib64"
        reason = None if Path(lib, "libcudart.so").exists() else f"{nvcc} has no libcudart.so in {lib}"
        settings = {"nvcc_path": nvcc}
    return ({}, reason) if reason else ({**settings, "use_cutlass": "0"}, None)


def _find_toolkit():
    """The first nvcc that runs: (its path, the toolkit's folder, major version), or None."""
    candidates = [f"{os.environ.get('CUDA_HOME', '')}/bin/nvcc", shutil.which("nvcc") or "",
                  "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc", *(f"{p}/cu13/bin/nvcc" for p in _find_packages()),
                  *sorted(glob.glob(str(Path.home() / ".cache/jittor/jtcuda/*/bin/nvcc")), reverse=True)]
    for nvcc in candidates:
        if os.access(nvcc, os.X_OK):
            version = re.search(r"release (\d+)\.", _run(nvcc, "--version"))
            # asked of nvcc, since the one on PATH may be a script or a link somewhere else
            root = re.search(r"^#\$ TOP=(.*)$", _run(nvcc, "--dryrun", "-x", "cu", "-c", "/dev/null"), re.MULTILINE)
            if version and root:
                return nvcc, Path(os.path.realpath(root[1].strip())), int(version[1])
    return None


def _run(*command):
    """What a command prints; nothing where it fails to start."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _find_packages():
    """The folders of the `nvidia` packages from PyPI."""
    spec = importlib.util.find_spec("nvidia")
    return list(spec.submodule_search_locations or ()) if spec else []


def build_home(nvcc: str, root: Path) -> tuple[Path | None, str | None]:
    """Builds the CUDA home in the cache, once.

    Args:
        nvcc: the toolkit's compiler.
        root: the toolkit's folder.

    Returns:
        (the home, None), or (None, what is missing).
    """
    packages = [Path(p) for p in _find_packages()]
    headers = [root / "include", root / "targets" / TARGET / "include",
               *(p / name / "include" for p in packages for name in ("cu13", "cudnn"))]
    libraries = [root / "lib64", root / "targets" / TARGET / "lib",
                 *(p / name / "lib" for p in packages for name in ("cu13", "cudnn"))]
    system = [(Path("/usr/include"), "cudnn*.h"), (Path("/usr/include") / SYSTEM, "cudnn*.h"),
              (Path("/usr/lib") / SYSTEM, "libcudnn*.so*")]
    shims = {str(p.relative_to(SHIMS)): p.read_bytes() for p in sorted(SHIMS.rglob("*.*h"))}
    # the listing is part of the key: another set of packages gets another home
    listing = [(str(d), sorted(os.listdir(d))) for d in headers + libraries if d.is_dir()]
    cudnn = [sorted(map(str, d.glob(pattern))) for d, pattern in system]
    home = make_cache_folder() / f"cuda-home-{short_hash(nvcc, listing, cudnn, shims)}"
    if not home.is_dir():
        draft = Path(tempfile.mkdtemp(prefix=".cuda-home-", dir=make_cache_folder()))
        try:
            _fill(draft, nvcc, shims, headers, libraries, system)
            missing = _find_missing(draft, root)
            if missing:
                return None, f"CUDA 13, but {missing}"
            try:
                os.rename(draft, home)
            except OSError:  # another process has built it meanwhile
                if not home.is_dir():
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return home, None


def _fill(home, nvcc, shims, headers, libraries, system):
    """Links headers and libraries into the home, and writes our own headers and the nvcc."""
    for folder in ("bin", "include", "lib64"):
        (home / folder).mkdir()
    for name, content in shims.items():
        (home / "include" / name).parent.mkdir(exist_ok=True)
        (home / "include" / name).write_bytes(content)
    headers = [h for d in headers for h in sorted(d.glob("*"))]
    headers += [h for d, pattern in system if pattern.endswith(".h") for h in sorted(d.glob(pattern))]
    for header in headers:  # the first of a name counts, so ours stay in front
        _link(header, home / "include" / header.name)
        if header.name == "cudnn.h":
            _link(header, home / "include" / "cudnn_real.h")
    libraries = [x for d in libraries for x in sorted(d.glob("lib*.so*"))]
    libraries += [x for d, pattern in system if not pattern.endswith(".h") for x in sorted(d.glob(pattern))]
    for library in libraries:
        _link(library, home / "lib64" / library.name)
        _link(library, home / "lib64" / (library.name.split(".so")[0] + ".so"))
    for part in ("ops", "cnn"):
        for half in ("infer", "train"):
            _link(home / "lib64" / f"libcudnn_{part}.so", home / "lib64" / f"libcudnn_{part}_{half}.so")
    # a file and no link: Jittor resolves links and takes the folder above as the CUDA home
    write_script(home / "bin" / "nvcc", "#!/bin/bash\n"
                 "# Jittor asks for C++14, CCCL 3 needs C++17\n"
                 'arguments=("$@"); for i in "${!arguments[@]}"; do\n'
                 '[ "${arguments[$i]}" = -std=c++14 ] && arguments[$i]=-std=c++17; done\n'
                 f'exec "{os.path.realpath(nvcc)}" "${{arguments[@]}}"\n')


def _link(target, link):
    """Links to an existing file, unless the name is taken."""
    if target.exists() and not link.exists():
        link.symlink_to(os.path.realpath(target))


def _find_missing(home, root):
    """What the home lacks, and the package that brings it; None where it is complete."""
    for (header, library), package in _NEEDED.items():
        for path in (home / "include" / header, home / "lib64" / f"lib{library}.so"):
            if not path.exists():
                return f"no {path.name.replace('cudnn_real', 'cudnn')}; pip install {package}"
    if not any((root / folder / "cub" / "cub.cuh").exists() for folder in ("include/cccl", "include")):
        return f"no cub/cub.cuh in {root}/include; install the toolkit's CCCL (pip install nvidia-cuda-cccl)"
    return None


def _preload(home):
    """Loads the home's libraries; returns None, or why that fails.

    The loader's search path cannot change in a running process. A library that needs another by name gets the one that
    is loaded already.
    """
    try:
        for name in _PRELOADED:
            path = home / "lib64" / f"lib{name}.so"
            if path.exists():
                ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return f"the CUDA libraries do not load ({error})"
    return None
