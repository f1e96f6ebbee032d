"""The plan of a training: parameters, memory, disk and time, measured in a few steps that write nothing."""
import math
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from jiidm.data.latents import LatentStore, PhotoLatents
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.distributed import world_size
from jiidm.system.runtime import device_name, jt
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.gradients import trainable
from jiidm.training.unet import UNetTrainer

_STEPS = 5


def plan(config, folder):
    """Lines that say what the training of a `Config` on a `TrainingFolder` takes on this machine."""
    nowhere = Path("/")  # nothing is written
    lines = [f"{len(folder)} photos in {folder.path}, {config.image.width}x{config.image.height}, {world_size()} "
             f"process{'es' if world_size() > 1 else ''} on {device_name()}"]
    lines += _stage(AutoencoderTrainer(config, folder, nowhere))
    jt.gc()
    return lines + _stage(UNetTrainer(config, samples_of(config, folder), None, nowhere, []))


def _stage(trainer):
    training = trainer.training
    # the last step: with the codebook, and the discriminator where there is one
    seconds, memory = measured(trainer, training.steps - 1)
    parameters = sum(math.prod(p.shape) for learner in trainer.learners for p in trainable(learner.network))
    state = 4 * sum(math.prod(value.shape) for value in trainer.state.variables.values())
    kept = training.keep_last + (training.steps // training.keep_every if training.keep_every else 0)
    micro = f", {training.micro_batch} at a time" if training.micro_batch else ""
    return [
        f"{trainer.stage}: {parameters / 1e6:.1f} M parameters, {training.steps} steps of {training.batch} "
        f"samples{micro}",
        f"  memory: {(state + 4 * parameters) / 1e9:.2f} GB of weights, moments, averages and gradients; "
        f"{memory / 1e9:.2f} GB in all, measured",
        f"  disk: {kept * state / 1e9:.2f} GB for {kept} states of {state / 1e9:.2f} GB",
        f"  time: {seconds:.2f} s a step, measured; {seconds * training.steps / 3600:.2f} hours",
    ]


def measured(trainer, step):
    """Builds a `Trainer` and measures a step.

    Args:
        trainer: the trainer, not built yet.
        step: the number of the step.

    Returns:
        Seconds, the median after a first step that compiles; and bytes: the most memory of this process so far.
    """
    trainer.build()
    seconds = []
    for _ in range(_STEPS + 1):
        batch = trainer.batch(step)  # a training reads ahead, beside the steps
        start = time.perf_counter()
        trainer.begin(step)
        _, gradients = trainer.compute(step, batch)
        trainer.update(step, 0.0, gradients)
        jt.sync_all(True)
        seconds.append(time.perf_counter() - start)
    if device_name() == "cuda":
        return statistics.median(seconds[1:]), jt.get_mem_info().total_cuda_used
    return statistics.median(seconds[1:]), 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def samples_of(config, folder):
    """What the UNet's training draws its batches from, here without a trained autoencoder."""
    if config.train_unet.encode_on_the_fly:
        return PhotoLatents(Autoencoder(config.autoencoder), folder, config)
    return random_store(config)


def random_store(config):
    """A `LatentStore` of random numbers: the true one takes a trained autoencoder."""
    factor, rng = config.autoencoder.factor, np.random.default_rng(0)
    views = config.train_unet.views
    size = (2 * views * config.train_unet.batch, config.image.height // factor, config.image.width // factor)
    latents = rng.standard_normal((size[0], config.autoencoder.embed_dim, *size[1:]), np.float32)
    labels = rng.integers(0, config.unet.num_classes, size).astype(np.uint8)
    return _RandomStore(latents, labels, views)


class _RandomStore(LatentStore):
    def __init__(self, latents, labels, views):
        self.latents, self.labels, self.about = latents, labels, {"views": views}
