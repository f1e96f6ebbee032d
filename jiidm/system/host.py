"""What this machine lacks, looked at before Jittor is imported, and the folder for what is built once on it."""
import hashlib
import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path


def cache_folder():
    """The folder for what jiidm builds once on this machine, ~/.cache/jiidm; made where it is missing."""
    folder = Path.home() / ".cache" / "jiidm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts):
    """Eight hexadecimal digits that change whenever one of `parts` does."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def compiler():
    """The C++ compiler that Jittor is going to use."""
    return os.environ.get("cc_path") or "g++"


def faults():
    """What keeps Jittor from working here: a list of pairs (fault, cure), each one line; empty where all is well."""
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
    if shutil.which(compiler()) is None:
        found.append((f"no C++ compiler ({compiler()}): Jittor compiles everything it runs", "apt install g++"))
    include = Path(sysconfig.get_paths()["include"])
    if "python_config_path" not in os.environ and not (include / "Python.h").is_file():
        found.append((f"{include}/Python.h is missing: Jittor compiles against Python's headers",
                      f"apt install python3.{sys.version_info.minor}-dev"))
    return found


def write_script(path, text):
    """Writes an executable script whole, so that another process sees all of it or none; leaves an equal one alone."""
    if path.is_file() and path.read_text() == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.chmod(0o755)
    os.replace(temporary, path)


def python_config():
    """The path of a script that answers what Jittor asks pythonX.Y-config, for this very interpreter.

    A virtual environment has no such program, and the one in /usr/bin may belong to another interpreter.
    """
    paths = sysconfig.get_paths()
    text = (f"#!/bin/sh\ncase \"$1\" in\n--includes) echo '-I{paths['include']} -I{paths['platinclude']}';;\n"
            f"--extension-suffix) echo '{sysconfig.get_config_var('EXT_SUFFIX')}';;\nesac\n")
    path = cache_folder() / f"python-config-{digest(text)}"
    write_script(path, text)
    return str(path)


def under_mpi():
    """Whether mpirun has started this process, as one of several or alone."""
    return "OMPI_COMM_WORLD_SIZE" in os.environ
