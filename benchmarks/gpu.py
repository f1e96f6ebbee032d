"""Is jiidm right and fast on this GPU? One table and, with --output, results.json; exit code 1 on a fault. Minutes.

    python -m benchmarks.gpu --output runs/gpu

It needs no files but the package. The first part compares: kernels with their plain twins, networks on the GPU with the
CPU, a chain of steps with and without the kernels. It runs in a process of its own, in which NVIDIA's libraries do not
round float32 to TF32. The second part measures: the card's own ceilings, kernels against these and against their twins,
guided and training steps. The third measures these steps in PyTorch, where it is installed. A further row is a function
that yields `Row`s, in ROWS.
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

from benchmarks.gpu_timing import (
    COLUMNS,
    REPEATS,
    Row,
    Stopwatch,
    called,
    largest_error,
    launched,
    numbers,
)
from benchmarks.measuring import ROOT, machine, program, with_random_weights
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import AutoencoderConfig, Config, DiffusionConfig, ImageConfig, UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.loss import hybrid_loss
from jiidm.diffusion.samplers import ddim
from jiidm.diffusion.schedule import Schedule
from jiidm.kernels import attention_cuda, group_norm_cuda, nearest_code_cuda, plain_operators
from jiidm.kernels.attention import attention, attention_plain
from jiidm.kernels.convolution import inference_convolution
from jiidm.kernels.group_norm import group_norm, group_norm_plain
from jiidm.kernels.nearest_code import nearest_code, nearest_code_plain
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import prepare, round_operands
from jiidm.models.unet import Conditions, UNet
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import cuda_reason, jt, nn, use_device
from jiidm.training.plan import measured as measured_step
from jiidm.training.plan import random_store
from jiidm.training.unet import UNetTrainer

STEP_FLOP = 799e9  # that remain of a guided step at full size and 96x128, see docs/performance.md
SMALL = UNetConfig(model_channels=64, channel_mult=(1, 2, 2), attention_resolutions=(2, 4), head_channels=32)
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
random = np.random.default_rng(0)


@dataclasses.dataclass
class Bench:
    """What the rows' functions share: whether shapes are to be tiny, and the ceilings once they are measured."""

    tiny: bool
    bandwidth: float = float("nan")                          # bytes a second, read and written
    matrix_rate: dict = dataclasses.field(default_factory=dict)  # dtype: operations a second

    def shape(self, *sizes):
        """These sizes, or tiny ones."""
        return tuple(min(size, 64) for size in sizes) if self.tiny else sizes


def normal(*shape):
    """Standard normal numbers, float32."""
    return random.standard_normal(shape, np.float32)


def variables(dtype, *arrays):
    """The arrays as Jittor variables of the dtype, computed."""
    result = [jt.array(a).cast(dtype) for a in arrays]
    jt.sync(result)
    return result


def random_mask(n, height, width):
    """A one-hot label map a sample, a random class at each place."""
    return one_hot_batch(random.integers(0, 29, (n, height, width)).astype(np.uint8), 29)


# ---- kernels

def group_norm_cases(bench, shapes):
    """(what, dtype, kernel, twin, bytes that must be moved) for the three uses in the network."""
    for sizes in shapes:
        n, c, height, width = bench.shape(*sizes)
        x, gamma, beta = normal(n, c, height, width) + 1, normal(1, c, height, width) + 1, normal(1, c, height, width)
        channels = variables("float32", normal(n, c) + 1, normal(n, c))
        for dtype in ("float32", "bfloat16"):
            x_, *maps = variables(dtype, x, gamma, beta)
            size = x.nbytes // (1 if dtype == "float32" else 2)
            for what, one, other in (("channels", None, channels), ("maps", maps, None), ("both", maps, channels)):
                yield (f"group norm {n}x{c}x{height}x{width}, {what}", dtype,
                       partial(group_norm_cuda.group_norm_cuda, x_, 32, 1e-5, one, other, silu=True),
                       partial(group_norm_plain, x_, 32, 1e-5, one, other, silu=True),
                       2 * size + (2 * size // n if one else 0))


def attention_cases(bench, shapes):
    """(what, dtype, kernel, twin, (heads, depth, length))."""
    for sizes in shapes:
        shape = bench.shape(*sizes)
        arrays = [normal(*shape) for _ in range(3)]
        for dtype in ("float32", "bfloat16"):
            qkv = variables(dtype, *arrays)
            if attention_cuda.supports(qkv[0]):
                yield (f"attention {shape[0]}x{shape[1]}x{shape[2]}", dtype,
                       partial(attention_cuda.attention_cuda, *qkv), partial(attention_plain, *qkv), shape)


def kernel_parity(bench):
    """Each kernel against its twin, ragged shapes too."""
    cases = [*group_norm_cases(bench, [(2, 256, 96, 128), (1, 2048, 6, 8), (3, 96, 7, 9), (1, 512, 96, 128)]),
             *attention_cases(bench, [(8, 64, 768), (3, 40, 77), (2, 128, 200), (2, 64, 3072)])]
    for what, dtype, kernel, twin, _ in cases:
        yield Row(what, dtype, largest_error(numbers(kernel()), numbers(twin())), TOLERANCE[dtype])


def large_mean(bench):
    """Group norm of mean 1e4 and deviation 0.1 against float64; as E[x^2] - E[x]^2 the variance would be noise."""
    x, a, b = variables("float32", normal(1, 64, 64, 64) * 0.1 + 1e4, normal(1, 64), normal(1, 64))
    exact = x.numpy().astype(np.float64).reshape(32, -1)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-5)
    exact = exact.reshape(x.shape) * a.numpy()[:, :, None, None] + b.numpy()[:, :, None, None]
    y = group_norm_cuda.group_norm_cuda(x, 32, 1e-5, None, (a, b), silu=False)
    yield Row("group norm, mean 1e4, deviation 0.1", "float32", largest_error([y.numpy()], [exact]), 1e-4)


def nearest_code_parity(bench):
    """Distances to the chosen codes against the twin's; all codes are there three times, the first is to be chosen."""
    z, codebook = variables("float32", normal(5000, 3), np.tile(normal(900, 3), (3, 1)))
    index, twin = nearest_code_cuda.nearest_code_cuda(z, codebook).numpy(), nearest_code_plain(z, codebook).numpy()
    error = float("nan")
    if ((index >= 0) & (index < 900)).all():
        actual, expected = (((z.numpy() - codebook.numpy()[i]) ** 2).sum(1) for i in (index, twin))
        error = largest_error([actual], [expected])
    yield Row("nearest code, 5000 of 2700", "float32", error, 1e-6, note=f"{(index != twin).sum()} other choices")


def group_norm_speed(bench):
    """Shapes of the full-size UNet at 96x128; 16 is a batch that no cache holds."""
    shapes = [(1, 256, 96, 128), (1, 512, 96, 128), (1, 512, 24, 32), (1, 1024, 6, 8), (16, 256, 96, 128)]
    for what, dtype, kernel, twin, size in group_norm_cases(bench, shapes):
        gpu = launched(group_norm_cuda, kernel)
        yield Row(what, dtype, gpu=gpu, call=called(kernel), plain=called(twin),
                  ceiling=size / bench.bandwidth / gpu * 1e3)


def attention_speed(bench):
    """Shapes of the full-size UNet: 8 heads of 64 channels at 24x32, a lower level, larger batches and pictures."""
    for what, dtype, kernel, twin, (heads, depth, length) in attention_cases(
            bench, [(8, 64, 768), (16, 64, 48), (128, 64, 768), (16, 64, 3072)]):
        gpu = launched(attention_cuda, kernel)
        floor = 4 * heads * depth * length**2 / bench.matrix_rate[dtype]
        yield Row(what, dtype, gpu=gpu, call=called(kernel), plain=called(twin), ceiling=floor / gpu * 1e3)


def nearest_code_speed(bench):
    """One picture against the full-size codebook."""
    z, codebook = variables("float32", normal(*bench.shape(12288, 3)), normal(*bench.shape(8192, 3)))
    kernel = partial(nearest_code_cuda.nearest_code_cuda, z, codebook)
    yield Row(f"nearest code, {z.shape[0]} of {codebook.shape[0]}", "float32", gpu=launched(nearest_code_cuda, kernel),
              call=called(kernel), plain=called(partial(nearest_code_plain, z, codebook)))


# ---- networks

def compared(name, function, arrays, tolerance):
    """The same function of the same arrays on the GPU and on the CPU."""
    results = []
    for device in ("cuda", "cpu"):
        use_device(device)
        results.append(numbers(function(*(jt.array(a) for a in arrays))))
    use_device("cuda")
    return Row(f"{name}, GPU and CPU", "float32", largest_error(*results), tolerance)


def with_gradients(function):
    """The function's result and its gradients by all arguments, for a fixed weighting of the result."""
    def run(*inputs):
        result = function(*inputs)
        weight = jt.array(np.random.default_rng(1).standard_normal(result.shape, np.float32))
        return [result, *jt.grad((result * weight).sum(), list(inputs))]

    return run


def inferred(function):
    """The function without gradients, as inference calls it: with the kernels."""
    def run(*inputs):
        with jt.no_grad():
            return function(*inputs)

    return run


def network_parity(bench):
    """What the networks call, forward and backward, and small networks with random weights."""
    yield compared("group norm and gradients", with_gradients(
        lambda x, a, b: group_norm(x, 32, 1e-5, (a, b), silu=True)), [normal(2, 64, 24, 32) for _ in range(3)], 1e-4)
    yield compared("attention and gradients", with_gradients(attention), [normal(8, 32, 200) for _ in range(3)], 1e-4)
    yield compared("nearest code", nearest_code, [normal(5000, 3), normal(1000, 3)], 1e-6)
    network, mask = with_random_weights(UNet(SMALL)), random_mask(2, 24, 32).numpy()
    yield compared("UNet", inferred(network), [normal(2, 3, 24, 32), np.array([10, 700], np.int32), mask], 1e-3)
    network = with_random_weights(Autoencoder(AutoencoderConfig(ch=64)))
    yield compared("encoder", inferred(network.encode), [normal(1, 3, 96, 128)], 1e-3)
    yield compared("decoder", inferred(lambda z: network.decode(z, quantize=False)), [normal(1, 3, 24, 32)], 1e-3)


def chain_parity(bench):
    """20 guided steps with the kernels and in Jittor's own operators."""
    network, mask, z = with_random_weights(UNet(SMALL)), random_mask(1, 24, 32), jt.array(normal(1, 3, 24, 32))
    schedule = Schedule(DiffusionConfig())
    timesteps = schedule.respaced("ddim50")[:20][::-1]

    def last():
        denoise = guided_denoiser(Conditions(network, mask, 24, 32).predict, schedule, Guidance(3.5))
        return [latent for _, latent in ddim(denoise, schedule, z, timesteps)][-1].numpy()

    result = last()
    with plain_operators():
        expected = last()
    yield Row("20 guided steps, kernels and plain", "float32", largest_error([result], [expected]), 1e-4)
    prepare(network, inference_convolution("cuda", "bf16"))
    yield Row("20 guided steps, bf16 and fp32", "bfloat16", largest_error([last()], [expected]), 1e-1)


def training(bench):
    """Three steps on one batch, with operands in fp32 and in bf16: the loss must fall."""
    schedule, t = Schedule(DiffusionConfig()), np.array([100, 600])
    z0, noise, mask = jt.array(normal(2, 3, 24, 32)), jt.array(normal(2, 3, 24, 32)), random_mask(2, 24, 32)
    zt = schedule.add_noise(z0, noise, t)
    for dtype in ("float32", "bfloat16"):
        network = UNet(SMALL)
        if dtype == "bfloat16":
            round_operands(network)
        losses = losses_of_steps(network, zt, z0, noise, mask, schedule, t)
        yield Row("training, loss after / before", dtype, losses[-1] / losses[0] if losses[0] else float("nan"), 0.999)


def losses_of_steps(network, zt, z0, noise, mask, schedule, t):
    """The squared errors of three training steps on one batch."""
    optimizer, losses = jt.optim.AdamW(network.parameters(), 1e-3), []
    for _ in range(3):
        mse, bound = hybrid_loss(schedule, network(zt, jt.array(t.astype(np.int32)), mask), z0, noise, t)
        optimizer.step((mse + bound).mean())
        losses.append(mse.mean().item())
    return losses


def training_steps(bench):
    """A training step of the full-size UNet, as tools/train.py takes it, and the memory that it takes."""
    config, *_ = small_or_full(bench)
    for precision, blocks in (("fp32", False), ("bf16", False), ("bf16", True)):
        settings = dataclasses.replace(config.train_unet, batch=5, precision=precision, checkpoint_blocks=blocks)
        chosen = dataclasses.replace(config, train_unet=settings)
        jt.gc()
        seconds, memory = measured_step(UNetTrainer(chosen, random_store(chosen), None, Path("/"), []), 0)
        yield Row(f"training step, batch 5{', blocks recomputed' if blocks else ''}",
                  "bfloat16" if precision == "bf16" else "float32", call=seconds * 1e3,
                  note=f"{memory / 1e9:.1f} GB")


def guided_steps(bench):
    """A guided step of the full-size network at 96x128, and how much of its time Python takes to describe it."""
    config, height, width = (SMALL, 24, 32) if bench.tiny else (UNetConfig(), 96, 128)
    network = with_random_weights(UNet(config))
    for dtype, precision in (("float32", "fp32"), ("bfloat16", "bf16")):
        prepare(network, inference_convolution("cuda", precision))
        for batch, joint in ((1, False), (1, True), (16, False), (16, True)):
            conditions = Conditions(network, random_mask(batch, height, width), height, width, joint=joint)
            conditions.prepare([500])
            denoise = guided_denoiser(conditions.predict, Schedule(DiffusionConfig()), Guidance(3.5))
            total, python = timeline(denoise, jt.array(normal(batch, config.in_channels, height, width)))
            share = None if bench.tiny else STEP_FLOP * batch / bench.matrix_rate[dtype] / total * 1e3
            yield Row(f"guided step, batch {batch}{', branches as one batch' if joint else ''}", dtype, call=total,
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
    bench.bandwidth = 2 * 4 * x.shape[0] / stopwatch.milliseconds * 1e3
    yield Row("copy within the card", note=f"{bench.bandwidth / 1e12:.2f} TB/s", gpu=stopwatch.milliseconds)
    size = 64 if bench.tiny else 8192
    a, b = normal(size, size), normal(size, size)
    for dtype in ("float32", "bfloat16"):
        took = called(partial(nn.matmul, *variables(dtype, a, b)))
        bench.matrix_rate[dtype] = 2 * size**3 / took * 1e3
        yield Row(f"matrix product {size}", dtype, call=took, note=f"{bench.matrix_rate[dtype] / 1e12:.1f} TFLOP/s")


ROWS = {
    "parity": [kernel_parity, large_mean, nearest_code_parity, network_parity, chain_parity, training],
    "speed": [ceilings, group_norm_speed, attention_speed, nearest_code_speed, guided_steps,
              training_steps],
    "torch": [torch_guided_steps, torch_training_steps],
}


def measured(part, tiny, folder=None):
    """The rows of one part as dicts, printed as they come; a function that fails becomes a row that says so.

    With a `folder`, PART.json in it has all rows so far: a run that is cut off leaves what it has measured.
    """
    bench, rows = Bench(tiny), []

    def add(row):
        rows.append({**dataclasses.asdict(row), "fault": row.fault})
        print(row.line(), flush=True)
        if folder:
            with written_whole(folder / f"{part}.json") as draft:
                draft.write_text(json.dumps(rows, indent=1))

    for function in ROWS[part]:
        start = time.perf_counter()
        try:
            for row in function(bench):
                add(row)
        except Exception as error:
            traceback.print_exc()
            why = next(iter(str(error).splitlines()), type(error).__name__)
            add(Row(function.__name__, error=float("nan"), tolerance=0.0, note=why[:80].replace("|", "/")))
        print(f"{function.__name__}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def card():
    """Name and driver of the GPU, as nvidia-smi gives them."""
    try:
        answer = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"],
                                capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        answer = ""
    return answer or "a GPU that nvidia-smi does not name"


def all_parts(tiny):
    """The rows of all parts, the comparisons made in a process without TF32; prints the table's head first."""
    print(f"{card()}, {machine()}, compiled for {list(jt.flags.cuda_archs)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        command = program("gpu", "--part", "parity", "--output", folder, *["--tiny"] * tiny)
        subprocess.run(command, cwd=ROOT, env={**os.environ, "NVIDIA_TF32_OVERRIDE": "0"}, check=False)
        results = Path(folder, "parity.json")
        if not results.exists():
            raise InputError("the comparisons ended without a result; what they said is above")
        return [*json.loads(results.read_text()), *measured("speed", tiny), *measured("torch", tiny)]


def main():
    """Runs all parts, or one; returns whether there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="folder for results.json, or PART.json")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes: does it run at all?")
    parser.add_argument("--part", choices=ROWS, help="one part only, without the table's head")
    args = parser.parse_args()
    if cuda_reason:
        raise InputError(f"no CUDA: {cuda_reason}")
    use_device("cuda")
    folder = args.output and output_folder(args.output)
    rows = measured(args.part, args.tiny, folder) if args.part else all_parts(args.tiny)
    if folder and not args.part:
        with written_whole(folder / "results.json") as draft:
            draft.write_text(json.dumps({"card": card(), "machine": machine(), "rows": rows}, indent=1))
    faults = [row["what"] for row in rows if row["fault"]]
    if not args.part:
        print(f"\nfailed: {'; '.join(faults)}" if faults else "\nall pass")
    return bool(faults)


if __name__ == "__main__":
    run_tool(main)
