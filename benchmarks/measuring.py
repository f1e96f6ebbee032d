"""What the benchmarks share: timing, the machine's own limits, and tables in Markdown and JSON."""
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import jt

ROOT = Path(__file__).resolve().parent.parent


def seconds(call, repeats=5, warmup=2):
    """Median seconds of a call that returns Jittor variables or None; they are computed within the time."""
    times = []
    for _ in range(warmup + repeats):
        start = time.perf_counter()
        result = call()
        if result is not None:
            jt.sync(list(result) if isinstance(result, list | tuple) else [result])
        if jt.flags.use_cuda:
            jt.sync_all(True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def program(name, *arguments):
    """The command that runs benchmarks/`name`.py in a process of its own, in the folder ROOT."""
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]


def torch_program(name, *arguments):
    """`program` with the Python that has PyTorch: this one, or the one that TORCH_PYTHON names."""
    return [os.environ.get("TORCH_PYTHON", sys.executable), *program(name, *arguments)[1:]]


def has_torch():
    """Whether there is a PyTorch to compare with."""
    return subprocess.run([*torch_program("")[:1], "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0


def normal(*shape, seed=0):
    """Standard normal numbers as a Jittor variable, computed."""
    value = jt.array(np.random.default_rng(seed).standard_normal(shape, np.float32))
    value.sync()
    return value


def with_random_weights(network, seed=0):
    """The network with every weight drawn anew (variance 1 / inputs): nothing stays zero, so every layer counts."""
    random = np.random.default_rng(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            values = random.standard_normal(parameter.shape, np.float32) / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.assign(jt.array(values.astype(np.float32)))
    network.eval()
    jt.sync_all()
    return network


def resident_gb():
    """Memory that this process holds now, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9


def peak_gb():
    """The most that this process has held, in GB."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def _processor():
    """The first processor's entries of /proc/cpuinfo, and how many processors there are."""
    lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    first: dict[str, str] = {}
    for name, value in lines:
        first.setdefault(name.strip(), value.strip())
    return first, sum(name.strip() == "processor" for name, _ in lines)


def machine():
    """The processor, the cores in use and the versions, as one dict."""
    found, cores = _processor()
    flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in found.get("flags", "").split()]
    about = [f"family {found['cpu family']}, model {found['model']}"] if "cpu family" in found else []
    return {
        "processor": f"{found.get('model name', platform.machine())} ({', '.join(about + flags)})", "cores": cores,
        "python": platform.python_version(), "jittor": jt.__version__, "numpy": np.__version__,
    }


def machine_name():
    """A name for files: the processor's model and the widest of its instruction sets, as in intel-xeon-amx."""
    found, _ = _processor()
    model = re.sub(r"\(.*?\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", found.get("model name", platform.machine()))
    sets = {"amx_bf16": "amx", "avx512_bf16": "avx512bf16", "avx512f": "avx512", "avx2": "avx2"}
    widest = next((name for flag, name in sets.items() if flag in found.get("flags", "").split()), "")
    return "-".join(re.findall(r"[a-z0-9]+", f"{model} {widest}".lower()))


def row(what, value, unit, against=None, other=None, ratio=None, note=""):
    """One line of the table: a value of ours, and what it is compared with in the same unit."""
    if ratio is None and other is not None:
        ratio = other / value
    return {"what": what, "value": value, "unit": unit, "against": against, "other": other, "ratio": ratio,
            "note": note}


def write_report(folder, name, title, rows, about):
    """Writes NAME-MACHINE.json and .md into the folder, so that those of two machines stand side by side; returns the
    Markdown."""
    output_folder(folder)
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in about.items()), "",
             "| what | ours | compared with | theirs | ratio | note |", "| --- | ---: | --- | ---: | ---: | --- |"]
    for r in rows:
        other = "" if r["other"] is None else f"{r['other']:.4g} {r['unit']}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(f"| {r['what']} | {r['value']:.4g} {r['unit']} | {r['against'] or ''} | {other} | {ratio} | "
                     f"{r['note']} |")
    text = "\n".join(lines) + "\n"
    for suffix, content in ((".md", text), (".json", json.dumps({"about": about, "rows": rows}, indent=1))):
        with written_whole(Path(folder) / f"{name}-{machine_name()}{suffix}") as path:
            path.write_text(content)
    return text
