"""Is jiidm right and fast on this GPU? One table and, with --output, results.json; exit code 1 on a fault. Minutes.

    python -m benchmarks.gpu --output runs/gpu

It needs no files but the package. `parity` compares: kernels with their plain twins, networks on the GPU with the CPU,
a chain of steps with and without the kernels; there NVIDIA's libraries do not round float32 to TF32. `bf16` and `fp32`
measure guided and training steps, `kernels` the kernels against the card's own ceilings and their twins, `torch` the
steps in PyTorch, where it is installed. Each part is a process of its own, since Jittor keeps the algorithm of a
convolution by its shape alone, whatever the precision. A function that fails costs its own rows: the next one starts in
a new process, since a fault in a kernel leaves the GPU unusable for the old one. A further row is a function that
yields `Row`s, in ROWS.
"""
import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu_cases import SMALL, Bench, attention_cases, group_norm_cases, normal, random_mask, variables
from benchmarks.gpu_parity import PARITY
from benchmarks.gpu_timing import COLUMNS, REPEATS, Row, Stopwatch, called, computed, launched, milliseconds
from benchmarks.measuring import ROOT, machine, program, with_random_weights
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import Config, DiffusionConfig, ImageConfig, UNetConfig
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.schedule import Schedule
from jiidm.kernels import attention_cuda, group_norm_cuda, nearest_code_cuda
from jiidm.kernels.convolution import inference_convolution
from jiidm.kernels.nearest_code import nearest_code_plain
from jiidm.models.blocks import prepare
from jiidm.models.unet import Conditions, UNet
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import cuda_reason, jt, nn, use_device
from jiidm.training.plan import measured as measured_step
from jiidm.training.plan import random_store
from jiidm.training.unet import UNetTrainer

STEP_FLOP = 799e9  # that remain of a guided step at full size and 96x128, see docs/performance.md


# ---- kernels

def group_norm_speed(bench):
    """Shapes of the full-size UNet at 96x128. Of one picture they stay in the card's cache, where the share of the
    ceiling can pass 1; no cache holds 16."""
    shapes = [(1, 256, 96, 128), (1, 512, 96, 128), (1, 512, 24, 32), (1, 1024, 6, 8), (16, 256, 96, 128)]
    yield from kernel_rows(group_norm_cuda, list(group_norm_cases(bench, shapes)),
                           lambda dtype, size: size / bench.bandwidth)


def attention_speed(bench):
    """Shapes of the full-size UNet: 8 heads of 64 channels at 24x32, a lower level, larger batches and pictures."""
    shapes = [(8, 64, 768), (16, 64, 48), (128, 64, 768), (16, 64, 3072)]
    yield from kernel_rows(attention_cuda, list(attention_cases(bench, shapes)),
                           lambda dtype, shape: 4 * shape[0] * shape[1] * shape[2]**2 / bench.matrix_rate[dtype])


def kernel_rows(module, cases, floor):
    """A row a case; `floor` gives the seconds that the card needs at least, from dtype and size of the case."""
    launches = [launched(module, kernel) for _, _, kernel, _, _ in cases]
    computed(launches, *(call() for case in cases for call in case[2:4]))
    for (what, dtype, kernel, twin, size), launch in zip(cases, launches, strict=True):
        gpu = milliseconds(launch)
        yield Row(what, dtype, gpu=gpu, call=called(kernel), plain=called(twin), ceiling=floor(dtype, size) / gpu * 1e3)


def nearest_code_speed(bench):
    """One picture against the full-size codebook."""
    z, codebook = variables("float32", normal(*bench.shape(12288, 3)), normal(*bench.shape(8192, 3)))
    kernel = partial(nearest_code_cuda.nearest_code_cuda, z, codebook)
    yield Row(f"nearest code, {z.shape[0]} of {codebook.shape[0]}", "float32",
              gpu=milliseconds(launched(nearest_code_cuda, kernel)), call=called(kernel),
              plain=called(partial(nearest_code_plain, z, codebook)))


# ---- steps

def training_steps(bench):
    """A training step of the full-size UNet, as tools/train.py takes it, and the memory that it takes."""
    config, *_ = small_or_full(bench)
    for blocks in (False, True) if bench.precision == "bf16" else (False,):
        settings = dataclasses.replace(config.train_unet, batch=5, precision=bench.precision, checkpoint_blocks=blocks)
        chosen = dataclasses.replace(config, train_unet=settings)
        jt.gc()
        seconds, memory = measured_step(UNetTrainer(chosen, random_store(chosen), None, Path("/"), []), 0)
        yield Row(f"training step, batch 5{', blocks recomputed' if blocks else ''}", bench.dtype, call=seconds * 1e3,
                  note=f"{memory / 1e9:.1f} GB")


def guided_steps(bench):
    """A guided step of the full-size network at 96x128, and how much of its time Python takes to describe it."""
    config, height, width = (SMALL, 24, 32) if bench.tiny else (UNetConfig(), 96, 128)
    network = with_random_weights(UNet(config))
    prepare(network, inference_convolution("cuda", bench.precision))
    for batch, joint in ((16, True), (1, True), (16, False), (1, False)):
        conditions = Conditions(network, random_mask(batch, height, width), height, width, joint=joint)
        conditions.prepare([500])
        denoise = guided_denoiser(conditions.predict, Schedule(DiffusionConfig()), Guidance(3.5))
        total, python = timeline(denoise, jt.array(normal(batch, config.in_channels, height, width)))
        share = STEP_FLOP * batch / bench.matrix_rate[bench.dtype] / total * 1e3
        if bench.tiny or bench.precision == "fp32":  # cuDNN may round fp32 to TF32, the matrix product does not
            share = None
        yield Row(f"guided step, batch {batch}{', branches as one batch' if joint else ''}", bench.dtype, call=total,
                  ceiling=share,
                  note=f"Python {python:.1f} ms; the paper's 640 steps: {640 * total / batch / 1e3:.1f} s an image")


def timeline(denoise, z):
    """Median milliseconds of a guided step, and of the part in which Python describes it and queues its kernels."""
    times = []
    for _ in range(2 + REPEATS):
        jt.sync_all(True)
        start = time.perf_counter()
        denoise(z, 500).sync()
        described = time.perf_counter()
        jt.sync_all(True)
        times.append((time.perf_counter() - start, described - start))
    return tuple(statistics.median(part) * 1e3 for part in zip(*times[2:], strict=True))


# ---- the same in PyTorch

def torch_guided_steps(bench):
    """A guided step in PyTorch on this card, twice the whole network."""
    config, height, width = small_or_full(bench)
    for batch in (1, 16):
        yield from in_torch("torch_unet", f"guided step, batch {batch}", config, {
            "z": normal(batch, config.unet.in_channels, height, width), "t": np.full(batch, 500, np.int32),
            "mask": random_mask(batch, height, width).numpy()}, "two whole forwards")


def torch_training_steps(bench):
    """A training step in PyTorch on this card, of the network and the batch of `training_steps`."""
    config, height, width = small_or_full(bench)
    shape = 5, config.unet.in_channels, height, width
    yield from in_torch("torch_training", "training step, batch 5", config, {
        "z0": normal(*shape), "noise": normal(*shape), "t": np.arange(0, 1000, 200),
        "mask": random_mask(5, height, width).numpy()}, "no variational bound")


def small_or_full(bench):
    """The configuration of the steps, and height and width of its latents."""
    config = Config(image=ImageConfig(64, 48), unet=SMALL) if bench.tiny else Config()
    return config, config.image.height // config.autoencoder.factor, config.image.width // config.autoencoder.factor


def in_torch(name, what, config, inputs, note):
    """Rows of what benchmarks/`name`.py measures with random weights; a row that says why where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        weights, given = Path(folder, "unet.safetensors"), Path(folder, "inputs.npz")
        save_checkpoint(weights, "unet", arrays_of(with_random_weights(UNet(config.unet))), config, 0, "float32")
        jt.gc()  # the card's memory is for PyTorch now
        np.savez(given, **inputs)
        call = program(name, "--weights", weights, "--inputs", given, "--device", "cuda",
                       "--variants", "eager", "bf16_channels_last")
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Row(f"PyTorch, {what}", note=f"not measured: {why[:200].replace('|', '/')}")
        return
    for variant, result in json.loads(done.stdout.splitlines()[-1])["variants"].items():
        yield Row(f"PyTorch {variant}, {what}", "bfloat16" if "bf16" in variant else "float32",
                  call=result["median_seconds"] * 1e3, note=f"{note}; {result['peak_gpu_bytes'] / 1e9:.1f} GB")


# ---- the card

def ceilings(bench):
    """What the card does at best: a copy within its memory, and large matrix products."""
    x, = variables("float32", np.zeros(1 << (10 if bench.tiny else 28), np.float32))
    stopwatch = Stopwatch()
    stopwatch.code(x.shape, "float32", [x],
                   cuda_src="cudaMemcpyAsync(out0_p, in0_p, in0->size, cudaMemcpyDeviceToDevice);")
    copy = milliseconds(stopwatch.launch)
    bench.bandwidth = 2 * 4 * x.shape[0] / copy * 1e3
    yield Row("copy within the card", note=f"{bench.bandwidth / 1e12:.2f} TB/s", gpu=copy)
    size = 64 if bench.tiny else 8192
    a, b = normal(size, size), normal(size, size)
    for dtype in ("float32", "bfloat16"):
        took = called(partial(nn.matmul, *variables(dtype, a, b)))
        bench.matrix_rate[dtype] = 2 * size**3 / took * 1e3
        yield Row(f"matrix product {size}", dtype, call=took, note=f"{bench.matrix_rate[dtype] / 1e12:.1f} TFLOP/s")


ROWS = {
    "parity": PARITY,
    "bf16": [ceilings, guided_steps, training_steps],
    "torch": [torch_guided_steps, torch_training_steps],
    "kernels": [ceilings, group_norm_speed, attention_speed, nearest_code_speed],
    "fp32": [ceilings, guided_steps, training_steps],
}


def measure(part, tiny, folder, after=None):
    """Writes the rows of a part into PART.json of `folder` and prints them, both as they come.

    Args:
        part: of ROWS.
        tiny: whether shapes are to be tiny.
        folder: for PART.json.
        after: name of the function that failed in the process before: go on with the next one.

    Returns:
        Whether all went well. A function that fails becomes a row that says so, and the process starts anew.
    """
    bench, path, functions = Bench(tiny, "fp32" if part == "fp32" else "bf16"), folder / f"{part}.json", ROWS[part]
    rows = json.loads(path.read_text()) if after else []
    if after:
        if ceilings in functions and ceilings.__name__ not in {row["what"] for row in rows}:  # else they have failed
            list(ceilings(bench))
        functions = functions[[f.__name__ for f in functions].index(after) + 1:]

    def add(row):
        rows.append({**dataclasses.asdict(row), "fault": row.fault})
        print(row.line(), flush=True)
        with written_whole(path) as draft:
            draft.write_text(json.dumps(rows, indent=1))

    for function in functions:
        start, name = time.perf_counter(), function.__name__
        try:
            for row in function(bench):
                add(row)
        except Exception as error:
            traceback.print_exc()
            why = next(iter(str(error).splitlines()), type(error).__name__)
            add(Row(name, error=float("nan"), tolerance=0.0, note=why[:80].replace("|", "/")))
            if function is not functions[-1]:
                sys.stderr.flush()
                os.execv(sys.executable, [*call_of(part, tiny, folder), "--after", name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return not any(row["fault"] for row in rows)


def call_of(part, tiny, folder):
    """The command that measures a part."""
    return program("gpu", "--part", part, "--output", str(folder), *["--tiny"] * tiny)


def card():
    """Name and driver of the GPU, as nvidia-smi gives them."""
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                                capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        answer = ""
    return answer or "a GPU that nvidia-smi does not name"


def all_parts(tiny):
    """The rows of all parts, each in a process of its own, which prints them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in ROWS:
            exact = {"NVIDIA_TF32_OVERRIDE": "0"} if part == "parity" else {}
            done = subprocess.run(call_of(part, tiny, folder), cwd=ROOT, env={**os.environ, **exact}, check=False)
            results = Path(folder, f"{part}.json")
            found = json.loads(results.read_text()) if results.exists() else []
            if done.returncode and not any(row["fault"] for row in found):
                row = Row(part, error=float("nan"), tolerance=0.0, note=f"ended with exit code {done.returncode}")
                print(row.line(), flush=True)
                found.append({**dataclasses.asdict(row), "fault": row.fault})
            rows += found
    return rows


def main():
    """Runs all parts, or one; returns whether there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="folder for results.json, or PART.json")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does it run at all?")
    parser.add_argument("--part", choices=ROWS, help="one part only, without the table's head; needs --output")
    parser.add_argument("--after", help=argparse.SUPPRESS)  # the function of the part that has failed
    args = parser.parse_args()
    if cuda_reason:
        raise InputError(f"no CUDA: {cuda_reason}")
    if args.part and not args.output:
        raise InputError(f"--part {args.part}: expected --output, the folder for {args.part}.json")
    use_device("cuda")
    folder = args.output and output_folder(args.output)
    if args.part:
        return not measure(args.part, args.tiny, folder, args.after)
    print(f"{card()}, {machine()}, compiled for {list(jt.flags.cuda_archs)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    rows = all_parts(args.tiny)
    if folder:
        with written_whole(folder / "results.json") as draft:
            draft.write_text(json.dumps({"card": card(), "machine": machine(), "rows": rows}, indent=1))
    faults = [row["what"] for row in rows if row["fault"]]
    print(f"\nfailed: {'; '.join(faults)}" if faults else "\nall pass")
    return bool(faults)


if __name__ == "__main__":
    run_tool(main)
