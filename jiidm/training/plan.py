"""What a training takes: parameters, memory, disk and time, measured in a few steps that change nothing on disk."""
import resource
import statistics
import time
from pathlib import Path

import numpy as np

from jiidm.data.latents import LatentStore, PhotoLatents
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import Convolution, GroupNorm, PointwiseConv, round_operands
from jiidm.models.unet import AttentionBlock, ResBlock, SpadeNorm, SpadeResBlock, UNet
from jiidm.system.distributed import world_size
from jiidm.system.runtime import device_name, jt
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.unet import UNetTrainer

_STEPS = 5

# For what is computed of a GPU, which trains in Jittor's own operators; fitted to what these take on the CPU, see
# docs/training.md. A norm leaves behind so many tensors of its size,
# attention so many matrices of all pairs; a block that is computed again takes so many times what it would keep.
# Bytes a number of the weights: weight, gradient, two moments, average, and what is about to take the place of one.
# Around it all: CUDA's context, its libraries and workspace.
_NORM, _ATTENTION, _AGAIN, _WEIGHTS, _AROUND = 9.5, 2, 2, 4 * 6, 1.5e9
_BLOCKS = ResBlock, SpadeResBlock, AttentionBlock


def plan(config, folder):
    """Lines that say what the training of a `Config` on a `TrainingFolder` takes on this machine."""
    first, second = config.train_autoencoder, config.train_unet
    nowhere = Path("/")  # nothing is written
    lines = [f"{len(folder)} photos in {folder.path}, {config.image.width}x{config.image.height}, {world_size()} "
             f"process{'es' if world_size() > 1 else ''} on {device_name()}"]
    # last steps: with the codebook, and the discriminator where there is one
    for name, training, trainer in (
        ("autoencoder", first, lambda: AutoencoderTrainer(config, folder, nowhere)),
        ("unet", second, lambda: UNetTrainer(config, samples_of(config, folder), None, nowhere, [])),
    ):
        lines += _stage(name, training, trainer())
        jt.gc()
    if device_name() == "cpu":
        samples = second.micro_batch or -(-second.batch // world_size())
        memory = gpu_memory(config, samples) / 1e9
        lines.append(f"  on a GPU: {memory:.1f} GB for {samples} samples at a time, computed")
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
        batch = trainer.batch(step)  # in training read ahead, beside the steps
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
    """What the UNet's training takes its samples from, here without a trained autoencoder."""
    if config.train_unet.encode_on_the_fly:
        return PhotoLatents(Autoencoder(config.autoencoder), folder, config)
    return made_up_store(config)


def gpu_memory(config, samples):
    """Bytes that the training of the UNet of `config` takes on a GPU that computes `samples` at a time: computed from
    the sizes of its tensors, see `_kept`; nothing is measured."""
    network = UNet(config.unet)  # only described: Jittor computes nothing that nobody asks for
    numbers = sum(p.numel() for p in network.parameters())
    weights = _WEIGHTS
    if config.train_unet.precision == "bf16":
        round_operands(network)
        weights += 2  # the cast copy
    if config.train_unet.micro_batch:
        weights += 4  # the gradients so far
    return _AROUND + weights * numbers + samples * _kept(network, config)


def _kept(network, config):
    """Bytes of one sample that the way back needs: what convolutions read, what norms and attention leave behind; with
    recomputed blocks their inputs, and all of the largest block."""
    seen, blocks, inputs, size = {}, [0], [], config.image

    def world_size(value, width):
        if id(value) not in seen:
            seen[id(value)] = value  # held, so that no other takes its place in memory
            blocks[-1] += width * value.numel()

    def counted(layer):
        def execute(x, *rest, **options):
            if isinstance(layer, _BLOCKS):
                blocks.append(0)
                inputs.append(4 * x.numel())
            if isinstance(layer, Convolution | PointwiseConv):
                world_size(x, 2 if layer.rounded else 4)
            elif isinstance(layer, GroupNorm | SpadeNorm):
                blocks[-1] += _NORM * 4 * x.numel()
            elif isinstance(layer, AttentionBlock):
                heads, positions = x.shape[1] // layer.head_channels, x.shape[2] * x.shape[3]
                blocks[-1] += _ATTENTION * 4 * heads * positions**2
            result = type(layer).execute(layer, x, *rest, **options)
            if isinstance(layer, _BLOCKS):
                blocks.append(0)
            return result
        return execute

    layers = [layer for layer in network.modules()
              if isinstance(layer, (*_BLOCKS, Convolution, PointwiseConv, GroupNorm, SpadeNorm))]
    for layer in layers:
        layer.execute = counted(layer)
    height, width = (side // config.autoencoder.factor for side in (size.height, size.width))
    mask = jt.zeros((1, config.unet.num_classes, height, width))
    features = network.encode(jt.zeros((1, config.unet.in_channels, height, width)), network.embed(jt.zeros((1,))))
    network.decode(features, network.condition(mask, height, width, budget=0), height, width)
    for layer in layers:
        del layer.execute
    seen.clear()  # what is held when something else is computed would be computed, too
    return sum(inputs) + _AGAIN * max(blocks) if config.train_unet.checkpoint_blocks else sum(blocks)


def made_up_store(config):
    """Stands in for the `LatentStore`, which a trained autoencoder would have to make."""
    factor, random = config.autoencoder.factor, np.random.default_rng(0)
    views = config.train_unet.views
    size = (2 * views * config.train_unet.batch, config.image.height // factor, config.image.width // factor)
    latents = random.standard_normal((size[0], config.autoencoder.embed_dim, *size[1:]), np.float32)
    labels = random.integers(0, config.unet.num_classes, size).astype(np.uint8)
    return _Store(latents, labels, views)


class _Store(LatentStore):
    def __init__(self, latents, labels, views):
        self.latents, self.labels, self.about = latents, labels, {"views": views}
