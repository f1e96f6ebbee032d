"""Times a training step of the UNet, and of the autoencoder with its discriminator: with the compiled kernels, with
Jittor's own operators and in PyTorch; and the loader's threads.

    python -m benchmarks.training_speed

PyTorch (pip install torch) runs in processes of its own, from the same weights and on the same batch
(torch_training.py, torch_autoencoder.py). Without it, its rows are missing. TORCH_PYTHON names a Python of another
environment that has it.
"""
import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import (
    ROOT,
    has_torch,
    machine,
    peak_gb,
    row,
    torch_program,
    with_random_weights,
    write_report,
)
from jiidm.checkpoint import arrays_of, load_into, save_checkpoint, save_tensors
from jiidm.commands.entry import run_tool
from jiidm.config import config_path, load_config
from jiidm.data.latents import one_hot_batch
from jiidm.data.loader import Loader
from jiidm.kernels import plain_operators
from jiidm.system.errors import InputError
from jiidm.system.runtime import device_name, jt
from jiidm.training.autoencoder import AutoencoderTrainer
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


def build_unet_trainer(config, folder):
    """The trainer of the UNet, and the arguments of torch_training.py: its weights and its first batch in files."""
    trainer = UNetTrainer(config, random_store(config), None, folder, []).build()
    with_random_weights(trainer.network)  # none stays zero: the first losses agree only where the networks do
    latents, labels, t, noise, keep = trainer.batch(0)
    mask = one_hot_batch(labels, trainer.config.unet.num_classes).numpy() * keep.reshape(-1, 1, 1, 1)
    weights, inputs = folder / "unet.safetensors", folder / "batch.npz"
    save_checkpoint(weights, "unet", arrays_of(trainer.network), config, 0, "float32")
    np.savez(inputs, z0=latents, noise=noise, t=t, mask=mask)
    return trainer, ("--weights", weights, "--inputs", inputs)


class _RandomPhotos:
    """Stands in for a `TrainingFolder`: photos of random pixels."""

    def __init__(self, image):
        self.names = [str(number) for number in range(16)]
        self._shape = image.height // 4, image.width // 4, 3

    def __len__(self):
        return len(self.names)

    def photo(self, name):
        return np.random.default_rng(int(name)).integers(0, 256, self._shape).astype(np.uint8).repeat(4, 0).repeat(4, 1)

    def photo_path(self, name):
        return Path(name)


def build_autoencoder_trainer(config, folder):
    """The same for the autoencoder, its codebook and its discriminator, and torch_autoencoder.py."""
    training = dataclasses.replace(config.train_autoencoder, quantize_from=0, discriminator_start=0,
                                   discriminator_ramp=0, revive_codes_every=0)
    config = dataclasses.replace(config, train_autoencoder=training)
    trainer = AutoencoderTrainer(config, _RandomPhotos(config.image), folder).build()
    for network in (trainer.network, trainer.discriminator):
        with_random_weights(network)
    paths = [folder / name for name in ("autoencoder.safetensors", "discriminator.safetensors", "photos.npz")]
    save_checkpoint(paths[0], "autoencoder", arrays_of(trainer.network), config, 0, "float32")
    save_tensors(paths[1], arrays_of(trainer.discriminator), {})
    np.savez(paths[2], photos=trainer.batch(0)[0])
    return trainer, ("--weights", paths[0], "--discriminator", paths[1], "--inputs", paths[2])


# the network: what makes its trainer, the yardstick, and the losses that both sides tell
NETWORKS = {
    "UNet": (build_unet_trainer, "torch_training", ("mse",)),
    "autoencoder": (build_autoencoder_trainer, "torch_autoencoder",
                    ("reconstruction", "codebook", "generator", "discriminator")),
}


def time_torch(name, arguments, steps, warmup):
    """The report of a yardstick in PyTorch; raises InputError where it fails."""
    done = subprocess.run(torch_program(name, *arguments, "--steps", steps, "--warmup", warmup), cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{name}.py: {' '.join(done.stderr.split()[-40:])}")
    return json.loads(done.stdout)


def compare_steps(what, config, folder, steps=5, warmup=2):
    """The rows of one of NETWORKS. The losses of the first step show that all sides compute the same."""
    make, yardstick, columns = NETWORKS[what]
    trainer, arguments = make(config, folder)
    networks = [learner.network for learner in trainer.learners]
    for network in networks:
        network.train()
    start = [arrays_of(network) for network in networks]
    ours, losses = time_steps(trainer, steps, warmup)
    batch, name = trainer.training.batch, f"a training step of the {what}"
    note = f"{batch / ours:.1f} samples/s; peak memory so far {peak_gb():.2f} GB; first losses"
    yield row(f"{name}, with the kernels", ours, "s", note=f"{note} {_listed(losses, columns)}")
    if what == "UNet":
        loader = time_loader(trainer)
        yield row("the loader prepares", loader, "samples/s", "the training takes", batch / ours, loader * ours / batch)
    for network, arrays in zip(networks, start, strict=True):
        load_into(network, arrays, "the first weights")
    with plain_operators():
        plain, losses = time_steps(trainer, steps, warmup)
    yield row(name, ours, "s", "Jittor's own operators", plain, note=f"first losses {_listed(losses, columns)}")
    if not has_torch():
        return
    report = time_torch(yardstick, arguments, steps, warmup)
    for variant, made in report["variants"].items():
        yield row(name, ours, "s", f"PyTorch {report['torch']} {variant}", made["median_seconds"],
                  note=f"peak memory {made['peak_resident_bytes'] / 1e9:.2f} GB; "
                       f"first losses {_listed(made['first_losses'], columns)}")


def _listed(losses, columns):
    return ", ".join(f"{losses[column]:.5f}" for column in columns)


def main():
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="a name in configs/, or a YAML file")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="these networks alone")
    parser.add_argument("--steps", type=int, default=5, help="timed steps (default %(default)s)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    if args.steps < 1 or args.warmup < 1:
        raise InputError(f"--steps {args.steps} --warmup {args.warmup}: expected at least 1; the first one compiles")
    config, rows = load_config(config_path(args.config)), []
    about = {**machine(), "device": device_name(), "configuration": args.config}
    for what in args.only:
        with tempfile.TemporaryDirectory() as folder:
            rows += compare_steps(what, config, Path(folder), args.steps, args.warmup)
    print(write_report(args.output, "training_speed", "A training step", rows, about))


if __name__ == "__main__":
    run_tool(main)
