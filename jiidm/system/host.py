"""This machine, before Jittor is imported: what it lacks, and the folder for what is built on it once."""
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def make_cache_folder() -> Path:
    """Returns the folder for what jiidm builds once on this machine, ~/.cache/jiidm; creates it where it is missing."""
    folder = Path.home() / ".cache" / "jiidm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def short_hash(*parts: object) -> str:
    """Returns eight hexadecimal digits that change whenever one of `parts` does."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def find_compiler() -> str:
    """Returns the C++ compiler that Jittor will use."""
    return os.environ.get("cc_path") or "g++"


def find_faults() -> list[tuple[str, str]]:
    """Finds what keeps Jittor from working here.

    Returns:
        Pairs (fault, cure), a line each; an empty list where all is well.
    """
    found = []
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        found.append((f"Python {sys.version.split()[0]}: Jittor 1.3.11 is known to work on 3.10 to 3.12",
                      "make a virtual environment with python3.12"))
    try:
        import numpy
        if int(numpy.__version__.split(".")[0]) >= 2:
            found.append((f"numpy {numpy.__version__}: Jittor 1.3.11 gives wrong numbers or crashes with numpy 2",
                          "pip install 'numpy<2'"))
    except ImportError as error:
        found.append((f"numpy cannot be imported ({error})", "pip install 'numpy<2'"))
    if importlib.util.find_spec("jittor") is None:
        found.append(("jittor is not installed", "pip install jittor==1.3.11.0"))
    if os.environ.get("use_mkl", "1") == "1" and importlib.util.find_spec("jittor_offline") is None:
        found.append(("jittor_offline is not installed: Jittor would fetch oneDNN from a server often out of reach",
                      "pip install jittor_offline==0.0.7"))
    if shutil.which(find_compiler()) is None:
        found.append((f"no C++ compiler ({find_compiler()}): Jittor compiles everything it runs", "apt install g++"))
    include = Path(sysconfig.get_paths()["include"])
    if "python_config_path" not in os.environ and not (include / "Python.h").is_file():
        found.append((f"{include}/Python.h is missing: Jittor compiles against Python's headers",
                      f"apt install python3.{sys.version_info.minor}-dev"))
    return found


def write_script(path: Path, text: str) -> None:
    """Writes an executable script, so that another process sees all of it or nothing; leaves an equal one alone."""
    if path.is_file() and path.read_text() == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(0o755)
    os.replace(temporary, path)


def write_python_config() -> str:
    """Writes a script that answers for this interpreter what Jittor asks pythonX.Y-config.

    A virtual environment has no such program, and the one in /usr/bin may belong to another interpreter.

    Returns:
        The path of the script.
    """
    paths = sysconfig.get_paths()
    text = (f"#!/bin/sh\ncase \"$1\" in\n--includes) echo '-I{paths['include']} -I{paths['platinclude']}';;\n"
            f"--extension-suffix) echo '{sysconfig.get_config_var('EXT_SUFFIX')}';;\nesac\n")
    path = make_cache_folder() / f"python-config-{short_hash(text)}"
    write_script(path, text)
    return str(path)


def is_under_mpi() -> bool:
    """Returns whether mpirun has started this process, also where it is the only one."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ
