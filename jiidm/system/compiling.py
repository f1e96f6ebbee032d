"""Shortens what Jittor compiles with g++: its core, once a machine, and each kernel at its first use.

Where a precompiled header cannot be made, or the compiler is another, Jittor compiles as it does by itself.
"""
import contextlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from jiidm.system.host import short_hash, write_script

# what most files of the core, and most kernels, include
_CORE_HEADERS = ("<algorithm>", "<atomic>", "<chrono>", "<cmath>", "<condition_variable>", "<cstring>", "<fstream>",
                 "<functional>", "<iomanip>", "<iostream>", "<limits>", "<list>", "<map>", "<memory>", "<mutex>",
                 "<set>", "<sstream>", "<string>", "<thread>", "<unordered_map>", "<unordered_set>", "<vector>",
                 '"common.h"', '"op.h"', '"var.h"', '"mem/allocator.h"', '"utils/str_utils.h"', '"fused_op.h"',
                 '"op_compiler.h"', '"ops/op_register.h"')
_KERNEL_HEADERS = ("<algorithm>", "<array>", "<atomic>", "<cmath>", "<cstdint>", "<cstring>", "<functional>",
                   "<iostream>", "<limits>", "<map>", "<memory>", "<sstream>", "<string>", "<unordered_map>",
                   "<vector>", '"var.h"', '"fused_op.h"', '"executor.h"', '"misc/cpu_math.h"', '"ops/op_register.h"',
                   '"ops/array_op.h"', '"ops/binary_op.h"', '"ops/broadcast_to_op.h"', '"ops/unary_op.h"')
# Jittor's own tests, its flags and its bindings of Python: their speed does not show in that of a network
_PLAIN_SOURCES = ("/src/test/", "/gen/pyjt_")
_ONEDNN = "dnnl_lnx_2.2.0_cpu_gomp"

# Jittor has g++ write assembler text with debug information, a Python process look in it for places to patch, and g++
# assemble it. Only a source with the mark @begin has such places; for the others one call of g++ gives the same code.
_DIRECT = """#!/bin/sh
case $1 in */asm_tuner.py)
    if ! grep -q @begin "$3"; then
        compiler=${2#--cc_path=}
        shift 2
        exec "$compiler" "$@"
    fi
esac
exec %s "$@"
"""


def unpack_onednn(home: str) -> None:
    """Unpacks oneDNN where Jittor looks for it. Jittor would then also compile and run an example of it.

    Args:
        home: the folder that holds `.cache/jittor`.
    """
    if os.environ.get("use_mkl", "1") != "1":
        return
    package = importlib.util.find_spec("jittor_offline")
    target = Path(home, ".cache", "jittor", "mkl", _ONEDNN)
    library = target / "lib" / "libmkldnn.so"
    if package is None or os.uname().machine != "x86_64" or library.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        with tarfile.open(Path(package.submodule_search_locations[0], f"{_ONEDNN}.tgz")) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
            archive.extractall(folder)
        if not library.is_file():
            shutil.rmtree(target, ignore_errors=True)  # of an unpacking that was interrupted
        with contextlib.suppress(OSError):  # another process was faster
            os.rename(Path(folder, _ONEDNN), target)


@contextlib.contextmanager
def faster_core(jittor_utils: ModuleType, cache: Path) -> Iterator[None]:
    """Context in which the import of Jittor compiles its core in less time, and looks for changes in less time.

    The headers that most of its files include are precompiled, and what no network runs is optimised less. Where
    nothing has changed since the last import, the seven processes that would look at each file are not started.

    Args:
        jittor_utils: Jittor's module that runs the compiler.
        cache: the folder of Jittor's cache.
    """
    original = jittor_utils.run_cmds

    def run_cmds(commands, cache_path, jittor_path, message="run_cmds"):
        ours = [command for command in commands if _is_gxx(_split(command)[0])]
        if "jittor_core" in message and ours:
            compiler, *flags = shlex.split(ours[0])
            header = _precompile(cache, "core", _CORE_HEADERS, jittor_path, [compiler, *flags[1:flags.index("-c")]])
            commands = [_lighten(command, header) for command in commands]
        built = cache / f"jiidm-built-{short_hash(commands, _sizes(jittor_path))}"
        if not (built.exists() and all(os.path.exists(command.split('"')[-2]) for command in commands)):
            original(commands, cache_path, jittor_path, message)
            built.touch()

    jittor_utils.run_cmds = run_cmds
    try:
        yield
    finally:
        jittor_utils.run_cmds = original


def _sizes(jittor_path):
    """Name and size of each file of Jittor's sources: they differ from one version to another."""
    return sorted((path.name, path.stat().st_size) for path in Path(jittor_path, "src").rglob("*.*"))


def _is_gxx(compiler):
    """Whether a compiler is g++, whose precompiled headers are meant here."""
    return Path(compiler).name.startswith("g++")


def _split(command):
    """The compiler and the source of a command '"COMPILER" "SOURCE" FLAGS'."""
    return command.split('"', 4)[1:4:2]


def _lighten(command, header):
    """A command of the core's compilation, with the precompiled header and the optimisation that its source needs."""
    compiler, source = _split(command)
    if not _is_gxx(compiler):
        return command
    if any(part in source for part in _PLAIN_SOURCES):
        command = command.replace(" -O2 ", " -O1 ")
    return command.replace(" -c -o ", f' -include "{header}" -c -o ') if header else command


def faster_kernels(jittor: ModuleType, cache: Path) -> None:
    """Has g++ compile a kernel in one step, with the headers that most kernels include precompiled.

    Args:
        jittor: the imported package.
        cache: the folder of Jittor's cache.
    """
    flags = jittor.flags
    if not _is_gxx(flags.cc_path):
        return
    command = [flags.cc_path, *shlex.split(flags.cc_flags)]
    command = [part for part in command if not part.startswith(("-l", "-L", "-Wl,", "-shared"))]
    header = _precompile(cache, "kernels", _KERNEL_HEADERS, flags.jittor_path, command, "#define JIT 1\n")
    if header:
        flags.cc_flags += f' -include "{header}" '
    write_script(cache / "jiidm-python", _DIRECT % shlex.quote(flags.python_path))
    flags.python_path = f'"{cache / "jiidm-python"}"'


def _precompile(cache, name, headers, jittor_path, command, text=""):
    """Writes a header of `text` and includes of `headers`, and precompiles it with a compiler and its flags.

    Returns its path, or None where the compiler failed. g++ takes it only with the flags that made it. That a header
    in it has changed g++ does not notice: the name tells them apart.
    """
    text += "".join(f"#include {header}\n" for header in headers)
    header = cache / f"jiidm-{name}-{short_hash(text, _sizes(jittor_path))}.h"
    compiled, temporary = Path(f"{header}.gch"), Path(f"{header}-{os.getpid()}.gch")
    if not compiled.exists():
        header.write_text(text)
        if subprocess.run([*command, "-x", "c++-header", header, "-o", temporary], capture_output=True).returncode:
            return None
        os.replace(temporary, compiled)
    return header
