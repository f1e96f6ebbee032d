"""Training of the UNet on stored latents (the paper's section 4.1; Nichol & Dhariwal 2021 for the loss)."""
import numpy as np
from PIL import Image

from jiidm.checkpoint import load_checkpoint, load_into, save_checkpoint, source_of
from jiidm.config import to_dict
from jiidm.data.labels import colorize
from jiidm.data.latents import one_hot_batch
from jiidm.data.pictures import sheet_of, to_pixels
from jiidm.diffusion.loss import hybrid_loss, weighted
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.plan import make_plan
from jiidm.inference.refinement import sample_round
from jiidm.models.blocks import round_operands
from jiidm.models.unet import Conditions, UNet
from jiidm.system.distributed import all_reduce, shard
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole
from jiidm.system.runtime import jt
from jiidm.training.ema import EMA
from jiidm.training.gradients import Gradients, parts
from jiidm.training.loop import train_loop
from jiidm.training.recompute import recomputing
from jiidm.training.state import TrainingState, batch_indices, step_generator
from jiidm.training.watch import Watch

DRAWS, SHEET, VIEWS = 3, 4, 5  # purposes of random numbers
SHEET_PICTURES = 8


def check_same_network(checkpoint, config):
    """Raises InputError, naming what differs, unless a `Checkpoint` holds the UNet of `config`."""
    ours, theirs = to_dict(config.unet), to_dict(checkpoint.config.unet)
    differences = [f"{name} {theirs[name]} instead of {value}" for name, value in ours.items() if theirs[name] != value]
    if differences:
        raise InputError(f"{checkpoint.path}: its UNet differs from the configuration's: {', '.join(differences)}; "
                         f"train with its unet section, or start from another checkpoint")


class UNetTrainer:
    """Trains `config.unet` on a `LatentStore` or `PhotoLatents`, in the folder `run`; `autoencoder` decodes the sheets,
    `photos` are the names of the store's photos. `start` is the path of a checkpoint whose weights the UNet and its
    average start from; the checkpoints name it as their source.

    For `train_loop`; see there for what the methods do.
    """

    columns = ("mse", "bound", *(f"mse_quarter_{i}" for i in (1, 2, 3, 4)))

    def __init__(self, config, store, autoencoder, run, photos, events=None, start=None):
        self.config, self.store, self.autoencoder, self.run, self.photos = config, store, autoencoder, run, photos
        self.events = events
        self.training, self.keep = config.train_unet, config.train_unet.keep_at
        self.schedule = Schedule(config.diffusion)
        jt.set_global_seed(config.seed, False)
        self.network = UNet(config.unet)
        if self.training.precision == "bf16":
            round_operands(self.network)
        self.denoise = recomputing(self.network) if self.training.checkpoint_blocks else self.network
        origin = self._start_from(start) if start is not None else None
        self.ema = EMA(self.network, self.training.ema)
        self.optimizer = jt.optim.AdamW(
            self.network.parameters(), self.training.learning_rate, weight_decay=self.training.weight_decay
        )
        self.watch = Watch(self.training.loss_limit, self.training.skip_bad_steps)
        sections = ("image", "autoencoder", "unet", "diffusion", "train_unet")
        self.state = TrainingState(run, "unet", config, sections, self.watch, origin)
        self.state.add_module("network", self.network)
        self.state.add_ema("ema", self.ema)
        self.state.add_optimizer("optimizer", self.optimizer)
        # fixed masks, each with the latent of another photo as its style
        latents, self.masks = store.whole(SHEET_PICTURES)
        self.styles = np.roll(latents, 1, 0)

    def fit(self, resume=None):
        """Trains to the configured number of steps; writes `unet-STEP.safetensors` (EMA) at the steps of `keep_at` and
        `unet-latest.safetensors` at every saving in between. resume: as for `TrainingState.resume`."""
        train_loop(self, resume)

    def _start_from(self, path):
        """Takes over the weights of a checkpoint; returns its `Source`."""
        checkpoint = load_checkpoint(path, "unet")
        check_same_network(checkpoint, self.config)
        load_into(self.network, checkpoint.tensors, path)
        return source_of(path, checkpoint.step)

    def _indices(self, step):
        return batch_indices(self.config.seed, step, self.training.batch, len(self.store))

    def names(self, step):
        return [self.store.name(i, self.photos) for i in self._indices(step)]

    def batch(self, step):
        random = step_generator(self.config.seed, step, DRAWS)
        indices = self._indices(step)
        t = random.integers(0, self.config.diffusion.timesteps, len(indices))
        noise = random.standard_normal((len(indices), *self.store.shape), np.float32)
        keep = (random.random(len(indices)) >= self.training.mask_drop).astype(np.float32)
        own = shard(len(indices))  # drawn for the whole batch: the draws do not depend on the number of processes
        rows, labels = self.store.batch(indices, own, step_generator(self.config.seed, step, VIEWS))
        return rows, labels, t[own], noise[own], keep[own]

    def begin(self, step):
        """Nothing is to be done before a step."""

    def compute(self, step, batch):
        gradients = Gradients((name for name, _ in self.network.named_parameters()), self.optimizer)
        sums = np.zeros(6)
        for part, weight in parts(self.training.batch, self.training.micro_batch):
            losses = [weight * loss for loss in self._losses(*(array[part] for array in batch))]
            gradients.add(losses[0] + losses[1], losses)
            sums += [loss.item() for loss in losses]
        gradients.complete()
        return dict(zip(self.columns, all_reduce(sums).tolist(), strict=True)), [gradients]

    def _losses(self, rows, labels, t, noise, keep):
        z0, noise = self.store.latents_of(rows), jt.array(noise)
        mask = one_hot_batch(labels, self.config.unet.num_classes) * jt.array(keep).reshape(-1, 1, 1, 1)
        output = self.denoise(self.schedule.add_noise(z0, noise, t), jt.array(t.astype(np.int32)), mask)
        mse, bound = hybrid_loss(self.schedule, output, z0, noise, t)
        error = weighted(self.schedule, mse, t).mean()
        # of the timesteps: four times the quarter's part in the mean, so that no batch without them leaves a gap
        quarters = jt.array(np.equal.outer(range(4), 4 * t // self.config.diffusion.timesteps).astype(np.float32))
        return [error, bound.mean(), *(4 * (mse * quarters[i]).mean() for i in range(4))]

    def update(self, step, rate, gradients):
        gradients[0].apply(rate)
        self.ema.update(step)

    def save(self, step):
        name = f"unet-{step:07d}" if step in self.keep else "unet-latest"
        origin = self.state.origin
        save_checkpoint(self.run / f"{name}.safetensors", "unet", self.ema.arrays(), self.config, step, "float32",
                        "fine-tuned" if origin else "", [origin] if origin else [])

    def sheet(self, step):
        self.ema.swap()
        mask = one_hot_batch(self.masks, self.config.unet.num_classes)
        conditions = Conditions(self.network, mask, *self.styles.shape[2:])
        planned = make_plan(self.config.inference, self.schedule, rounds=1).rounds[0]
        noise = step_generator(self.config.seed, 0, SHEET).standard_normal(self.styles.shape, np.float32)
        with jt.no_grad():
            *_, (_, result) = sample_round(conditions, self.schedule, planned, jt.array(self.styles), noise)
            pictures, styles = (to_pixels(self.autoencoder.decode(z).numpy()) for z in (result, jt.array(self.styles)))
        self.ema.swap()
        factor = self.config.autoencoder.factor
        masks = [colorize(m).repeat(factor, 0).repeat(factor, 1) for m in self.masks]
        sheet = sheet_of([list(styles), masks, list(pictures)], ["style", "mask", "result"])
        with written_whole(self.run / f"unet-{step:07d}.jpg") as path:
            Image.fromarray(sheet).save(path, quality=92)
        return sheet
