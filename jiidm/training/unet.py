"""Training of the UNet on latents (the paper's section 4.1; Nichol & Dhariwal 2021 for the loss)."""
import numpy as np

from jiidm.checkpoint import load_checkpoint, load_into, save_checkpoint, source_of
from jiidm.config import to_dict
from jiidm.data.hand_drawn import draw_by_hand
from jiidm.data.labels import colorize
from jiidm.data.latents import one_hot_batch
from jiidm.data.pictures import to_pixels
from jiidm.diffusion.loss import hybrid_loss, weighted
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.plan import make_plan
from jiidm.inference.refinement import sample_round
from jiidm.models.blocks import round_operands
from jiidm.models.unet import Conditions, UNet
from jiidm.system.distributed import shard
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt
from jiidm.training.gradients import Learner
from jiidm.training.recompute import recomputing
from jiidm.training.trainer import SAMPLES, Losses, Trainer

_FOCUS = 0.8  # share of the timesteps below `focus_below`


class UNetTrainer(Trainer):
    """Trains `config.unet` on latents.

    Args:
        config: the `Config`.
        store: a `LatentStore` or `PhotoLatents`.
        autoencoder: the `Autoencoder` that decodes the sample grids; None where there are none.
        run: the folder to write into.
        photos: the names of the store's photos, for messages.
        tensorboard: as for `Trainer`.
        start_from: path of a checkpoint whose weights the training starts from; random ones by default.
    """

    stage, title = "unet", "the UNet"
    columns = ("mse", "bound", *(f"mse_quarter_{i}" for i in (1, 2, 3, 4)))
    sections = ("image", "autoencoder", "unet", "diffusion", "train_unet")

    def __init__(self, config, store, autoencoder, run, photos, tensorboard=False, start_from=None):
        super().__init__(config, store, run, tensorboard=tensorboard)
        self.autoencoder, self.photos, self.start_from = autoencoder, photos, start_from
        self.keep = self.training.keep_at
        self.schedule = Schedule(config.diffusion)

    @property
    def result(self):
        return self._kept_path(self.training.steps)

    def _kept_path(self, step):
        return self.run / f"unet-{step:07d}.safetensors"

    def build_networks(self):
        self.network = UNet(self.config.unet)
        if self.training.precision == "bf16":
            round_operands(self.network)
        self.denoise = recomputing(self.network) if self.training.checkpoint_blocks else self.network
        optimizer = jt.optim.AdamW(self.network.parameters(), self.training.learning_rate,
                                   weight_decay=self.training.weight_decay)
        self.learners = [Learner("network", self.network, optimizer)]
        # fixed masks, each with the latent of another photo as its style
        latents, self.masks = self.samples.whole(SAMPLES)
        self.styles = np.roll(latents, 1, 0)

    def initialize(self):
        if self.start_from is not None:
            checkpoint = load_checkpoint(self.start_from, "unet")
            check_same_network(checkpoint, self.config)
            load_into(self.network, checkpoint.tensors, self.start_from)
            self.ema.assign(checkpoint.tensors)
            self.state.origin = source_of(self.start_from, checkpoint.step)

    def names(self, step):
        return [self.samples.name(i, self.photos) for i in self.indices(step)]

    def batch(self, step):
        indices = self.indices(step)
        t = self._draw_timesteps(step, len(indices))
        noise = self.rng(step, "noise").standard_normal((len(indices), *self.samples.shape), np.float32)
        keep = (self.rng(step, "mask drop").random(len(indices)) >= self.training.mask_drop).astype(np.float32)
        own = shard(len(indices))
        rows, labels = self.samples.batch(indices, own, self.rng(step, "views"))
        return rows, self._draw_by_hand(step, own, labels), t[own], noise[own], keep[own]

    def _draw_timesteps(self, step, count):
        """Timesteps of a batch, most of them below `focus_below`."""
        rng, below = self.rng(step, "timesteps"), self.training.focus_below
        t = rng.integers(0, self.config.diffusion.timesteps, count)
        return np.where(rng.random(count) < _FOCUS, rng.integers(0, below, count), t) if below else t

    def _draw_by_hand(self, step, own, labels):
        """The label maps `own` of a batch; some as a hand would draw them."""
        if not self.training.hand_drawn:
            return labels
        rngs = [self.rng(step, f"hand-drawn {i}") for i in range(own.start, own.stop)]
        return np.stack([draw_by_hand(each, rng) if rng.random() < self.training.hand_drawn else each
                         for each, rng in zip(labels, rngs, strict=True)])

    def losses(self, step, part):
        rows, labels, t, noise, keep = part
        z0, noise = self.samples.latents_of(rows), jt.array(noise)
        mask = one_hot_batch(labels, self.config.unet.num_classes) * jt.array(keep).reshape(-1, 1, 1, 1)
        output = self.denoise(self.schedule.add_noise(z0, noise, t), jt.array(t.astype(np.int32)), mask)
        mse, bound = hybrid_loss(self.schedule, output, z0, noise, t)
        error, bound = weighted(self.schedule, mse, t).mean(), bound.mean()
        # means over the quarters of the timesteps: four times the quarter's part of the batch's mean, so that a batch
        # without any of them leaves no gap
        quarters = jt.array(np.equal.outer(range(4), 4 * t // self.config.diffusion.timesteps).astype(np.float32))
        return Losses([error + bound], [error, bound, *(4 * (mse * quarters[i]).mean() for i in range(4))])

    def save(self, step):
        if step in self.keep:
            self.save_weights(self._kept_path(step), step)
        else:
            super().save(step)

    def save_weights(self, path, step):
        origin = self.state.origin
        save_checkpoint(path, "unet", self.ema.arrays(), self.config, step, "float32",
                        "fine-tuned" if origin else "", [origin] if origin else [])

    def pictures(self, step):
        mask = one_hot_batch(self.masks, self.config.unet.num_classes)
        noise = self.rng(0, "sample grid").standard_normal(self.styles.shape, np.float32)
        styles, planned = jt.array(self.styles), make_plan(self.config.inference, self.schedule, rounds=1).rounds[0]
        with self.ema.averaged(), jt.no_grad():
            conditions = Conditions(self.network, mask, *self.styles.shape[2:])
            *_, (_, latents) = sample_round(conditions, self.schedule, planned, styles, noise)
            results, styles = (to_pixels(self.autoencoder.decode(z).numpy()) for z in (latents, styles))
        factor = self.config.autoencoder.factor
        masks = [colorize(m).repeat(factor, 0).repeat(factor, 1) for m in self.masks]
        return {"style": styles, "mask": masks, "result": results}


def check_same_network(checkpoint, config):
    """Raises InputError, naming what differs, unless a `Checkpoint` holds the UNet of `config`."""
    ours, theirs = to_dict(config.unet), to_dict(checkpoint.config.unet)
    differences = [f"{name} {theirs[name]} instead of {value}" for name, value in ours.items() if theirs[name] != value]
    if differences:
        raise InputError(f"{checkpoint.path}: its UNet differs from the configuration's: {', '.join(differences)}; "
                         f"train with its unet section, or start from another checkpoint")
