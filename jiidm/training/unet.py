"""Training of the UNet on stored latents (the paper's section 4.1; Nichol & Dhariwal 2021 for the loss)."""
import numpy as np
from PIL import Image

from jiidm.checkpoint import save_checkpoint
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import GuidedDenoiser
from jiidm.diffusion.loss import hybrid_loss
from jiidm.diffusion.samplers import translate
from jiidm.diffusion.schedule import Schedule
from jiidm.files import written_whole
from jiidm.labels import colorize
from jiidm.models.unet import UNet
from jiidm.pictures import sheet_of, to_pixels
from jiidm.runtime import jt
from jiidm.training.ema import EMA
from jiidm.training.loop import train_loop
from jiidm.training.state import TrainingState, batch_indices, step_generator

DRAWS, SHEET = 3, 4  # purposes of random numbers
COLUMNS = ("mse", "bound")
SHEET_PICTURES = 8


class UNetTrainer:
    """Trains `config.unet` on a `LatentStore`, in the folder `run`; `autoencoder` decodes the sheets."""

    def __init__(self, config, store, autoencoder, run):
        self.config, self.store, self.autoencoder, self.run = config, store, autoencoder, run
        self.training = config.train_unet
        self.schedule = Schedule(config.diffusion)
        jt.set_global_seed(config.seed)
        self.network = UNet(config.unet)
        self.ema = EMA(self.network, self.training.ema)
        self.optimizer = jt.optim.AdamW(
            self.network.parameters(), self.training.learning_rate, weight_decay=self.training.weight_decay
        )
        self.state = TrainingState(
            run / "unet-state.safetensors", config, ("image", "autoencoder", "unet", "diffusion", "train_unet")
        )
        self.state.add_module("network", self.network)
        self.state.add_ema("ema", self.ema)
        self.state.add_optimizer("optimizer", self.optimizer)
        # fixed masks, each with the latent of another photo as its style
        masks = np.linspace(0, len(store) // 2 - 1, SHEET_PICTURES).astype(int) * 2
        self.masks, self.styles = store.labels[masks], store.latents[np.roll(masks, 1)]

    def fit(self, resume=False):
        """Trains to the configured number of steps; writes `unet-STEP.safetensors` (EMA) at the steps of `keep_at` and
        `unet-latest.safetensors` at every saving in between."""
        train_loop(
            "unet", self.training, self.state, self._batch, self._step, self._save, self._sheet, COLUMNS, resume,
            self.training.keep_at,
        )

    def _batch(self, step):
        random = step_generator(self.config.seed, step, DRAWS)
        indices = batch_indices(self.config.seed, step, self.training.batch, len(self.store))
        latents = self.store.latents[indices]
        t = random.integers(0, self.config.diffusion.timesteps, len(indices))
        noise = random.standard_normal(latents.shape, np.float32)
        keep = (random.random(len(indices)) >= self.training.mask_drop).astype(np.float32)
        return latents, self.store.labels[indices], t, noise, keep

    def _step(self, step, batch, rate):
        latents, labels, t, noise, keep = batch
        z0, noise = jt.array(latents), jt.array(noise)
        mask = one_hot_batch(labels, self.config.unet.num_classes) * jt.array(keep).reshape(-1, 1, 1, 1)
        output = self.network(self.schedule.noised(z0, noise, t), jt.array(t.astype(np.int32)), mask)
        mse, bound = (term.mean() for term in hybrid_loss(self.schedule, output, z0, noise, t))
        self.optimizer.lr = rate
        self.optimizer.step(mse + bound)
        self.ema.update(step)
        return {"mse": mse, "bound": bound}

    def _save(self, step):
        name = f"unet-{step:07d}" if step in self.training.keep_at else "unet-latest"
        save_checkpoint(self.run / f"{name}.safetensors", "unet", self.ema.arrays(), self.config, step, "float32")

    def _sheet(self, step):
        self.ema.swap()
        mask = one_hot_batch(self.masks, self.config.unet.num_classes)
        denoiser = GuidedDenoiser(self.network, mask, *self.styles.shape[2:])
        noise = step_generator(self.config.seed, 0, SHEET).standard_normal(self.styles.shape, np.float32)
        with jt.no_grad():
            settings = self.config.inference.rounds[0]
            steps = translate(denoiser, self.schedule, jt.array(self.styles), jt.array(noise), settings)
            *_, (_, result) = steps
            pictures, styles = (to_pixels(self.autoencoder.decode(z).numpy()) for z in (result, jt.array(self.styles)))
        self.ema.swap()
        factor = self.config.autoencoder.factor
        masks = [colorize(m).repeat(factor, 0).repeat(factor, 1) for m in self.masks]
        sheet = sheet_of([list(styles), masks, list(pictures)], ["style", "mask", "result"])
        with written_whole(self.run / f"unet-{step:07d}.jpg") as path:
            Image.fromarray(sheet).save(path, quality=92)
