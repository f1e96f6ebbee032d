"""What the benchmarks share: timing, memory, the machine, and reports in Markdown and JSON."""
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
from tqdm import tqdm

from jiidm.checkpoint import load_checkpoint, load_into
from jiidm.data.pictures import from_pixels, to_pixels
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import jt

ROOT = Path(__file__).resolve().parent.parent


def seconds(call, repeats=5, warmup=2):
    """Median seconds of a call; the Jittor variables that it returns are computed within the time."""
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
    """The command that runs benchmarks/`name`.py in a process of its own; its working directory must be ROOT."""
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]


def torch_program(name, *arguments):
    """`program` with the Python that has PyTorch: this one, or the one that TORCH_PYTHON names."""
    return [os.environ.get("TORCH_PYTHON", sys.executable), *program(name, *arguments)[1:]]


def has_torch():
    """Whether there is a PyTorch to compare with."""
    return subprocess.run([*torch_program("")[:1], "-c", "import torch"], stderr=subprocess.DEVNULL).returncode == 0


def normal(*shape, seed=0):
    """Standard normal numbers, as a computed Jittor variable."""
    value = jt.array(np.random.default_rng(seed).standard_normal(shape, np.float32))
    value.sync()
    return value


def with_random_weights(network, seed=0):
    """Draws all weights of a network anew (variance 1 / inputs), so that no layer stays zero; returns the network."""
    random = np.random.default_rng(seed)
    for parameter in network.parameters():
        if parameter.ndim > 1:
            values = random.standard_normal(parameter.shape, np.float32) / np.sqrt(np.prod(parameter.shape[1:]))
            parameter.assign(jt.array(values.astype(np.float32)))
    network.eval()
    jt.sync_all()
    return network


def autoencoder_in(folder):
    """The `Checkpoint` of the one autoencoder in a folder of weights; raises InputError where there is not one."""
    found = [c for c in map(load_checkpoint, sorted(Path(folder).glob("*.safetensors"))) if c.kind == "autoencoder"]
    if len(found) != 1:
        raise InputError(f"{folder}: {len(found)} autoencoders; expected one")
    return found[0]


def reconstruct(photos, checkpoint):
    """Yields what the autoencoder of a checkpoint makes of photos (H x W x 3 uint8 each), through the codebook."""
    network = Autoencoder(checkpoint.config.autoencoder)
    load_into(network, checkpoint.tensors, checkpoint.path)
    network.eval()
    for photo in tqdm(photos, checkpoint.path.parent.name, unit="image", mininterval=1, leave=False):
        with jt.no_grad():
            yield to_pixels(network.decode(network.encode(jt.array(from_pixels(photo[None])))).numpy())[0]


def resident_gb():
    """Resident memory of this process, in GB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e9


def peak_gb():
    """Peak memory of this process, in GB."""
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
    """A name for files: the processor's name, family and model, as in amd-epyc-25-17."""
    found, _ = _processor()
    name = re.sub(r"\(.*?\)|@.*|\b(CPU|Processor|\d+-Core)\b", " ", found.get("model name", platform.machine()))
    return "-".join(re.findall(r"[a-z0-9]+", f"{name} {found.get('cpu family', '')} {found.get('model', '')}".lower()))


def row(what, value, unit, against=None, other=None, ratio=None, note=""):
    """A row of the table: our value, and another one in the same unit."""
    if ratio is None and other is not None:
        ratio = other / value
    return {"what": what, "value": value, "unit": unit, "against": against, "other": other, "ratio": ratio,
            "note": note}


def write_report(folder, name, title, rows, about):
    """Writes rows as NAME-MACHINE.md and .json into the folder, so that those of two machines stand side by side.

    Returns the Markdown.
    """
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in about.items()), "",
             "| what | ours | compared with | theirs | ratio | note |", "| --- | ---: | --- | ---: | ---: | --- |"]
    for r in rows:
        other = "" if r["other"] is None else f"{r['other']:.4g} {r['unit']}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.2f}"
        lines.append(f"| {r['what']} | {r['value']:.4g} {r['unit']} | {r['against'] or ''} | {other} | {ratio} | "
                     f"{r['note']} |")
    return write_files(folder, f"{name}-{machine_name()}", "\n".join(lines) + "\n", rows, about)


def write_files(folder, name, text, rows, about):
    """Writes the Markdown `text` as NAME.md and the rows as NAME.json into the folder; returns the text."""
    folder = output_folder(folder)
    for suffix, content in (("md", text), ("json", json.dumps({"about": about, "rows": rows}, indent=1) + "\n")):
        with written_whole(folder / f"{name}.{suffix}") as path:
            path.write_text(content, "utf-8")
    return text
