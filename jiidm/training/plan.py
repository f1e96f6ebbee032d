"""What a training takes: parameters, memory, disk and time, measured in a few steps that change nothing on disk."""
import resource
import statistics
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from jiidm.runtime import device_name, jt
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.processes import count
from jiidm.training.unet import UNetTrainer

_STEPS = 3


def plan(config, folder):
    """Lines that say what the training of a `Config` on a `TrainingFolder` takes on this machine."""
    first, second = config.train_autoencoder, config.train_unet
    nowhere = Path("/")  # nothing is written
    lines = [f"{len(folder)} photos in {folder.path}, {config.image.width}x{config.image.height}, {count()} process"
             f"{'es' if count() > 1 else ''} on {device_name()}"]
    # last steps: with the codebook, and the discriminator where there is one
    for name, training, trainer in (
        ("autoencoder", first, lambda: AutoencoderTrainer(config, folder, nowhere)),
        ("unet", second, lambda: UNetTrainer(config, made_up_store(config), None, nowhere, [])),
    ):
        lines += _stage(name, training, trainer())
        jt.gc()
    return lines


def _stage(name, training, trainer):
    seconds, memory = measured(trainer, training.steps - 1)
    networks = sum(int(np.prod(p.shape)) for key, p in trainer.state.variables.items() if "/first/" in key)
    state = 4 * sum(int(np.prod(value.shape)) for value in trainer.state.variables.values())
    kept = training.keep_last + (training.steps // training.keep_every if training.keep_every else 0)
    micro = f", {training.micro_batch} at a time" if training.micro_batch else ""
    return [
        f"{name}: {networks / 1e6:.1f} M parameters, {training.steps} steps of {training.batch} samples{micro}",
        f"  memory: {(state + 4 * networks) / 1e9:.2f} GB of weights, moments, averages and gradients; "
        f"{memory / 1e9:.2f} GB in all, measured",
        f"  disk: {kept * state / 1e9:.2f} GB for {kept} states of {state / 1e9:.2f} GB",
        f"  time: {seconds:.2f} s a step, measured; {seconds * training.steps / 3600:.2f} hours",
    ]


def measured(trainer, step):
    """Seconds of a step, of which the first, which compiles, is left out, and the most memory of this process so far.
    """
    seconds = []
    for _ in range(_STEPS + 1):
        start = time.perf_counter()
        _, gradients = trainer.compute(step, trainer.batch(step))
        trainer.update(step, 0.0, gradients)
        jt.sync_all(True)
        seconds.append(time.perf_counter() - start)
    if device_name() == "cuda":
        return statistics.median(seconds[1:]), jt.get_mem_info().total_cuda_used
    return statistics.median(seconds[1:]), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def made_up_store(config):
    """Stands in for the `LatentStore`, which a trained autoencoder would have to make."""
    factor, random = config.autoencoder.factor, np.random.default_rng(0)
    size = (2 * config.train_unet.batch, config.image.height // factor, config.image.width // factor)
    latents = random.standard_normal((size[0], config.autoencoder.embed_dim, *size[1:]), np.float32)
    labels = random.integers(0, config.unet.num_classes, size).astype(np.uint8)
    return _Store(latents, labels)


class _Store(SimpleNamespace):
    def __init__(self, latents, labels):
        super().__init__(latents=latents, labels=labels)

    def __len__(self):
        return len(self.latents)
