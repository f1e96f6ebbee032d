"""What is compiled less than Jittor would; the compiler is a stand-in that notes what it is asked for."""
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from jiidm.system.compiling import faster_core, faster_kernels, unpack_onednn
from jiidm.system.host import write_script


@pytest.fixture
def jittor_path(tmp_path):
    """Jittor's sources, of one header."""
    (tmp_path / "jittor" / "src").mkdir(parents=True)
    (tmp_path / "jittor" / "src" / "op.h").write_text("first")
    return tmp_path / "jittor"


def stand_in(path, exit_code=0):
    """A compiler that writes what it is given into `path`.log, a line a call, and creates the file of its last word."""
    write_script(path, f'#!/bin/sh\necho "$@" >> {path}.log\nfor last; do :; done\n: > "$last"\nexit {exit_code}\n')
    return path


def calls(compiler):
    log = Path(f"{compiler}.log")
    return log.read_text().splitlines() if log.exists() else []


# ---- the core

def core_commands(compiler, folder, names=("src/executor.cc", "src/test/test_op.cc", "gen/pyjt_graph.cc")):
    return [f'"{compiler}" "{folder}/{name}"  -fPIC   -O2   -c -o "{folder}/{Path(name).name}.o"' for name in names]


def import_core(folder, jittor_path, commands, message="Compiling jittor_core"):
    """What Jittor's import asks to be run; returns the commands that are run."""
    ran = []

    def run_cmds(commands, cache_path, jittor_path, message):
        ran.extend(commands)
        for command in commands:
            Path(command.split('"')[-2]).touch()

    jittor_utils = SimpleNamespace(run_cmds=run_cmds)
    with faster_core(jittor_utils, folder):
        jittor_utils.run_cmds(commands, folder, jittor_path, message)
    assert jittor_utils.run_cmds is run_cmds
    return ran


def test_the_core_gets_a_precompiled_header_and_optimises_less_what_no_network_runs(tmp_path, jittor_path):
    compiler = stand_in(tmp_path / "g++")
    commands = core_commands(compiler, tmp_path)
    network, test, binding = import_core(tmp_path, jittor_path, commands)
    made, = calls(compiler)
    header = made.split()[4]
    assert made.startswith("-fPIC -O2 -x c++-header ") and Path(f"{header}.gch").exists()
    assert '#include "op.h"' in Path(header).read_text()
    assert network == commands[0].replace(" -c ", f' -include "{header}" -c ')
    for given, ran in zip(commands[1:], (test, binding), strict=True):
        assert ran == given.replace("-O2", "-O1").replace(" -c ", f' -include "{header}" -c ')


def test_a_core_that_is_built_is_looked_at_again_only_after_a_change(tmp_path, jittor_path):
    commands = core_commands(stand_in(tmp_path / "g++"), tmp_path)
    assert len(import_core(tmp_path, jittor_path, commands)) == 3
    assert import_core(tmp_path, jittor_path, commands) == []
    assert len(import_core(tmp_path, jittor_path, [command.replace("-fPIC", "") for command in commands])) == 3
    (tmp_path / "executor.cc.o").unlink()
    assert len(import_core(tmp_path, jittor_path, commands)) == 3
    (jittor_path / "src" / "op.h").write_text("another version")
    changed = import_core(tmp_path, jittor_path, commands)
    assert len(changed) == 3 and len(list(tmp_path.glob("jiidm-core-*.h.gch"))) == 2


def test_an_interrupted_core_is_built_again(tmp_path, jittor_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    commands = core_commands(stand_in(tmp_path / "g++"), tmp_path)
    jittor_utils = SimpleNamespace(run_cmds=interrupted)
    with pytest.raises(KeyboardInterrupt), faster_core(jittor_utils, tmp_path):
        jittor_utils.run_cmds(commands, tmp_path, jittor_path, "Compiling jittor_core")
    assert len(import_core(tmp_path, jittor_path, commands)) == 3


@pytest.mark.parametrize(("name", "exit_code"), [("clang", 0), ("g++", 1)])
def test_without_a_precompiled_header_the_core_is_built_all_the_same(tmp_path, jittor_path, name, exit_code):
    compiler = stand_in(tmp_path / name, exit_code)
    commands = core_commands(compiler, tmp_path, ["src/executor.cc"])
    assert import_core(tmp_path, jittor_path, commands) == commands
    assert len(calls(compiler)) == exit_code


def test_other_libraries_of_jittor_are_built_as_they_are(tmp_path, jittor_path):
    commands = core_commands(stand_in(tmp_path / "g++"), tmp_path)
    assert import_core(tmp_path, jittor_path, commands, "Compiling gen_ops_mkl") == commands


# ---- kernels

def kernel_flags(folder, jittor_path, compiler, python="python"):
    flags = SimpleNamespace(cc_path=str(compiler), cc_flags="-Ofast -lomp -shared", python_path=str(python),
                            jittor_path=str(jittor_path))
    faster_kernels(SimpleNamespace(flags=flags), folder)
    return flags


def test_kernels_get_a_precompiled_header(tmp_path, jittor_path):
    compiler = stand_in(tmp_path / "g++")
    flags = kernel_flags(tmp_path, jittor_path, compiler)
    header = flags.cc_flags.split('"')[1]
    assert calls(compiler)[0].startswith(f"-Ofast -x c++-header {header} -o ")
    assert Path(header).read_text().startswith("#define JIT 1\n") and Path(f"{header}.gch").exists()
    assert kernel_flags(tmp_path, jittor_path, compiler).cc_flags == flags.cc_flags and len(calls(compiler)) == 1


@pytest.mark.parametrize("patched", [False, True])
def test_a_kernel_takes_one_call_unless_its_assembler_text_is_to_be_patched(tmp_path, jittor_path, patched):
    compiler, python = stand_in(tmp_path / "g++"), stand_in(tmp_path / "python")
    flags = kernel_flags(tmp_path, jittor_path, compiler, python)
    source = tmp_path / "a kernel_op.cc"
    source.write_text("//@begin replace \"vmova\" \"vmovnt\"\n" if patched else "int i;\n")
    words = f'--cc_path="{compiler}" "{source}" -Ofast -o "{tmp_path}/kernel_op.so"'
    subprocess.run(f"{flags.python_path} /jittor/utils/asm_tuner.py {words}", shell=True, check=True)
    expected = f"{source} -Ofast -o {tmp_path}/kernel_op.so"
    if patched:
        assert calls(python) == [f"/jittor/utils/asm_tuner.py --cc_path={compiler} {expected}"]
    else:
        assert calls(compiler)[1:] == [expected] and not calls(python)


def test_other_uses_of_python_stay(tmp_path, jittor_path):
    python = stand_in(tmp_path / "python")
    flags = kernel_flags(tmp_path, jittor_path, stand_in(tmp_path / "g++"), python)
    subprocess.run(f"{flags.python_path} /jittor/utils/dlink_compiler.py {tmp_path}/out", shell=True, check=True)
    assert calls(python) == [f"/jittor/utils/dlink_compiler.py {tmp_path}/out"]


def test_another_compiler_compiles_kernels_as_it_did(tmp_path, jittor_path):
    compiler = stand_in(tmp_path / "clang")
    flags = kernel_flags(tmp_path, jittor_path, compiler)
    assert (flags.cc_flags, flags.python_path, calls(compiler)) == ("-Ofast -lomp -shared", "python", [])


# ---- oneDNN

def test_onednn_is_unpacked_once_and_whole(tmp_path):
    unpack_onednn(tmp_path)
    home, = (tmp_path / ".cache" / "jittor" / "mkl").iterdir()
    library, header = home / "lib" / "libmkldnn.so", home / "include" / "dnnl.hpp"
    assert library.is_file() and header.is_file()
    header.unlink()
    unpack_onednn(tmp_path)
    assert not header.exists()
    library.unlink()  # an interrupted unpacking of Jittor's own
    unpack_onednn(tmp_path)
    assert library.is_file() and header.is_file() and [*home.parent.iterdir()] == [home]
