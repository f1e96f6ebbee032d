"""Times a training step of the UNet with the compiled kernels, with Jittor's own operators and in PyTorch, and the
loader's threads.

    python -m benchmarks.training_speed

PyTorch (pip install torch) runs in its own process, with the same weights and batch (torch_training.py). Without it,
its rows are missing.
"""
import argparse
import importlib.util
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import ROOT, machine, peak_gb, program, row, with_random_weights, write_report
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import config_path, load_config
from jiidm.data.latents import one_hot_batch
from jiidm.data.loader import Loader
from jiidm.kernels import plain_operators
from jiidm.system.errors import InputError
from jiidm.system.runtime import device_name, jt
from jiidm.training.plan import random_store
from jiidm.training.unet import UNetTrainer


def time_steps(trainer, steps, warmup):
    """Median seconds of training steps, without preparing the batch, and the losses of the first one."""
    seconds, first = [], None
    for step in range(warmup + steps):
        batch = trainer.batch(0)
        jt.sync_all(True)
        start = time.perf_counter()
        losses, gradients = trainer.compute(step, batch)
        fault = trainer.watch.fault(losses, gradients)
        if fault:
            raise InputError(f"step {step}: {fault}; nothing is measured")
        trainer.update(step, trainer.training.learning_rate, gradients)
        jt.sync_all(True)
        seconds.append(time.perf_counter() - start)
        first = first or losses
    return statistics.median(seconds[warmup:]), first


def time_loader(trainer, seconds=3.0):
    """Samples a second that the loader prepares while nothing else runs."""
    with Loader(trainer.batch, 0, 10**9) as batches:
        next(batches), next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += trainer.training.batch
        return count / (time.perf_counter() - start)


def write_inputs(folder, trainer):
    """Writes weights and first batch for PyTorch; returns the two paths."""
    latents, labels, t, noise, keep = trainer.batch(0)
    mask = one_hot_batch(labels, trainer.config.unet.num_classes).numpy() * keep.reshape(-1, 1, 1, 1)
    weights, inputs = folder / "unet.safetensors", folder / "batch.npz"
    save_checkpoint(weights, "unet", arrays_of(trainer.network), trainer.config, 0, "float32")
    np.savez(inputs, z0=latents, noise=noise, t=t, mask=mask)
    return weights, inputs


def time_torch(weights, inputs, steps, warmup):
    """The report of torch_training.py; raises InputError where it fails."""
    call = program("torch_training", "--weights", weights, "--inputs", inputs, "--steps", steps, "--warmup", warmup,
                   "--device", device_name())
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"torch_training.py: {' '.join(done.stderr.split()[-40:])}")
    return json.loads(done.stdout)


def main():
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="a name in configs/, or a YAML file")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 1:
        raise InputError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 1; the first one compiles")
    config = load_config(config_path(args.config))
    about = {**machine(), "device": device_name(), "batch": config.train_unet.batch}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        trainer = UNetTrainer(config, random_store(config), None, folder, []).build()
        with_random_weights(trainer.network)  # no zeros: the first losses agree only if the networks do
        trainer.network.train()
        paths = write_inputs(folder, trainer)
        start = arrays_of(trainer.network)
        ours, losses = time_steps(trainer, args.steps, args.warmup)
        about["memory of this process with kernels"] = f"{peak_gb():.2f} GB"
        loader, taken = time_loader(trainer), config.train_unet.batch / ours
        rows = [row("the loader prepares", loader, "samples/s", "the training takes", taken, loader / taken)]
        for name, parameter in trainer.network.named_parameters():
            parameter.assign(jt.array(start[name]))
        with plain_operators():
            plain, plain_losses = time_steps(trainer, args.steps, args.warmup)
        rows.append(row("with the kernels", ours, "s", "Jittor's own operators", plain,
                        note=f"ours: {config.train_unet.batch / ours:.1f} samples/s"))
        about["loss of the first step"] = f"{losses['mse']:.5f} with kernels, {plain_losses['mse']:.5f} without"
        if importlib.util.find_spec("torch"):
            report = time_torch(*paths, args.steps, args.warmup)
            about["torch"] = report["torch"]
            for name, made in report["variants"].items():
                about["loss of the first step"] += f", {made['first_loss']:.5f} in PyTorch"
                rows.append(row("with the kernels", ours, "s", f"PyTorch {name}", made["median_seconds"],
                                note=f"no variational bound; peak {made['peak_resident_bytes'] / 1e9:.2f} GB"))
    print(write_report(args.output, "training_speed", "A training step of the UNet", rows, about))


if __name__ == "__main__":
    run_tool(main)
