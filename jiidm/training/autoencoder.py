"""Training of the autoencoder (Esser et al. 2021): L1, commitment, and a PatchGAN from a start step.

The perceptual term of the literature is there where the user gives the weights of its network.
"""
from dataclasses import dataclass

import numpy as np
from PIL import Image

from jiidm.checkpoint import arrays_of, load_into, save_checkpoint
from jiidm.config import COLOR_AXES
from jiidm.data.pictures import fit_photo, from_pixels, sheet_of, to_pixels
from jiidm.data.views import draw_views, load_photos
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import downsample_average
from jiidm.models.discriminator import PatchDiscriminator
from jiidm.system.distributed import all_gather, all_reduce, all_reduce_vars, broadcast_vars, is_main_process, shard
from jiidm.system.files import written_whole
from jiidm.system.runtime import jt, nn
from jiidm.system.stopping import interruptible
from jiidm.training.ema import EMA
from jiidm.training.gradients import Gradients, parts
from jiidm.training.loop import train_loop
from jiidm.training.perceptual import Perceptual
from jiidm.training.quality import psnr_ssim
from jiidm.training.state import TrainingState, batch_indices, step_generator
from jiidm.training.table import Table
from jiidm.training.watch import Watch

CROPS, NEW_CODES = 1, 2  # purposes of random numbers
SHEET_PHOTOS = 8


def quantizer_loss(z, codes):
    """mean((sg[codes] - z)^2) + 0.25 mean((codes - sg[z])^2), z and codes N, D, h, w."""
    return ((codes.detach() - z) ** 2).mean() + 0.25 * ((codes - z.detach()) ** 2).mean()


def color_means(x, factor):
    """Means of x (N, 3, H, W, RGB) over squares of factor x factor pixels (a power of two), along three colour axes.

    Returns a dict of N, h, w. In RGB the two colour differences weigh so little beside the brightness that a short
    training leaves them out of the latents.
    """
    while factor > 1:
        x, factor = downsample_average(x), factor // 2
    red, green, blue = (x[:, i] for i in range(3))
    return dict(zip(COLOR_AXES, ((red + green + blue) / 3, red - green, (red + green) / 2 - blue), strict=True))


def coarse_loss(x, recon, factor):
    """L1 between the `color_means` of x and recon (N, 3, H, W), added up over the axes."""
    return sum(jt.abs(mean).mean() for mean in color_means(x - recon, factor).values())


def anchor_loss(x, z, anchors, factor):
    """L1 between the latent channels of z (N, D, h, w) and the colour means of x that `anchors` names, times 4.

    The factor brings the means to the scale that latents take by themselves.
    """
    means = color_means(x, factor)
    return sum(jt.abs(z[:, i] - 4 * means[name]).mean() for i, name in enumerate(anchors) if name)


def adaptive_weight(reconstruction, generator):
    """Ratio of the norms of two losses' gradients (Vars) at the decoder's last layer, at most 1e4 (Esser et al. 2021,
    eq. 7), a number."""
    norms = [float(np.linalg.norm(gradient.numpy())) for gradient in (reconstruction, generator)]
    return min(norms[0] / (norms[1] + 1e-4), 1e4)


def hinge_loss(real, fake):
    """Hinge loss of the discriminator for its scores of real and reconstructed pictures."""
    return 0.5 * (nn.relu(1 - real).mean() + nn.relu(1 + fake).mean())


@dataclass(frozen=True)
class _Forward:
    """What a part of a batch gives: the Vars that the losses are made of."""

    reconstruction: jt.Var
    codebook: jt.Var
    perceptual: jt.Var
    base: jt.Var  # the loss but for the adversary's part
    generator: jt.Var
    recon: jt.Var
    z: jt.Var
    index: jt.Var


class AutoencoderTrainer:
    """Trains `config.autoencoder` on the photos of a `TrainingFolder`, in the folder `run`.

    For `train_loop`; see there for what the methods do.
    """

    columns = ("reconstruction", "codebook", "perceptual", "generator", "discriminator", "codes_used")
    keep = ()

    def __init__(self, config, folder, run, validation=None, events=None):
        self.config, self.folder, self.run, self.events = config, folder, run, events
        self.training = config.train_autoencoder
        self.perceptual = None
        if self.training.perceptual_weight:
            self.perceptual = Perceptual.from_file(*self.training.perceptual_files)
        jt.set_global_seed(config.seed, False)
        self.network = Autoencoder(config.autoencoder)
        self.discriminator = PatchDiscriminator(
            self.training.discriminator_channels, self.training.discriminator_layers
        )
        self.ema = EMA(self.network, self.training.ema)
        adam = {"eps": 1e-8, "betas": (0.5, 0.9)}
        self.optimizer = jt.optim.AdamW(self.network.parameters(), self.training.learning_rate, **adam)
        self.adversary = jt.optim.AdamW(self.discriminator.parameters(), self.training.learning_rate, **adam)
        self.watch = Watch(self.training.loss_limit, self.training.skip_bad_steps)
        sections = ("image", "autoencoder", "train_autoencoder")
        self.state = TrainingState(run, "autoencoder", config, sections, self.watch)
        self.state.add_module("network", self.network)
        self.state.add_module("discriminator", self.discriminator)
        self.state.add_ema("ema", self.ema)
        self.state.add_optimizer("optimizer", self.optimizer)
        self.state.add_optimizer("adversary", self.adversary)
        self.usage = jt.zeros((config.autoencoder.n_embed,)).detach()
        self.state.variables["usage"] = self.usage
        shown = validation or folder
        names = [shown.names[i] for i in np.linspace(0, len(shown) - 1, SHEET_PHOTOS).astype(int)]
        self.shown = [self._photo(shown, name) for name in names]

    def fit(self, resume=None):
        """Trains to the configured number of steps and writes `autoencoder.safetensors`: the averaged weights, with
        latents normalised over the training photos. Savings in between go to `autoencoder-latest.safetensors`.
        resume: as for `TrainingState.resume`."""
        train_loop(self, resume)
        if is_main_process():
            with interruptible():
                self.ema.swap()
                latents = self._latents()
                normalise_latents(self.network, latents.mean(0), np.sqrt(latents.var(0).mean()))
                save_checkpoint(
                    self.run / "autoencoder.safetensors", "autoencoder", arrays_of(self.network), self.config,
                    self.training.steps, "float32",
                )

    def _photo(self, folder, name):
        return fit_photo(folder.photo(name), self.config.image.width, self.config.image.height)

    def _indices(self, step):
        return batch_indices(self.config.seed, step, self.training.batch, len(self.folder))

    def names(self, step):
        return [self.folder.photo_path(self.folder.names[i]).name for i in self._indices(step)]

    def batch(self, step):
        image, crop, indices = self.config.image, self.training.crop, self._indices(step)
        # drawn for the whole batch: the views do not depend on the number of processes
        views = draw_views(step_generator(self.config.seed, step, CROPS), len(indices), image.width, image.height,
                           crop, crop, self.training.scale)
        own = shard(len(indices))
        return from_pixels(load_photos(self.folder, [self.folder.names[i] for i in indices[own]], views[own]))

    def begin(self, step):
        if step and step == self.training.quantize_from:
            self._start_quantizing(step)
            broadcast_vars([*self.network.parameters(), *self.ema.average.values()])

    def compute(self, step, batch):
        adversarial = step >= self.training.discriminator_start
        own = Gradients((name for name, _ in self.network.named_parameters()), self.optimizer)
        others = Gradients((f"discriminator.{name}" for name, _ in self.discriminator.named_parameters()),
                           self.adversary)
        pieces = parts(self.training.batch, self.training.micro_batch)
        # one part is kept from here to the gradients; of several each is computed again, to save memory
        made = [self._forward(step, batch[pieces[0][0]])] if len(pieces) == 1 else None
        weight = self._adversary_weight(step, batch, pieces, made) if adversarial else 0.0
        sums, codes, latents = np.zeros(5), [], []
        for part, share in pieces:
            forward = made[0] if made else self._forward(step, batch[part])
            loss, discriminator = forward.base, jt.zeros(1)
            if adversarial:
                loss = loss + weight * forward.generator
                scores = (self.discriminator(v) for v in (jt.array(batch[part]), forward.recon.detach()))
                discriminator = share * hinge_loss(*scores)
            losses = [share * v for v in (forward.reconstruction, forward.codebook, forward.perceptual,
                                           forward.generator)]
            own.add(share * loss, [*losses, discriminator, forward.recon, forward.z, forward.index])
            if adversarial:
                others.add(discriminator)
            sums += [loss.item() for loss in (*losses, discriminator)]
            codes.append(forward.index.numpy().ravel()), latents.append(forward.z.numpy())
        gradients = [own, others] if adversarial else [own]
        for each in gradients:
            each.complete()
        quantize = step >= self.training.quantize_from
        self.found = (np.concatenate(codes), np.concatenate(latents)) if quantize else None
        losses = dict(zip(self.columns[:-1], all_reduce(sums).tolist(), strict=True))
        return {**losses, "codes_used": self._share_of_codes() if quantize else 0.0}, gradients

    def _forward(self, step, batch):
        x, training, factor = jt.array(batch), self.training, self.config.autoencoder.factor
        quantize = step >= training.quantize_from
        recon, z, codes, index = self.network(x, quantize)
        reconstruction, codebook = jt.abs(x - recon).mean(), quantizer_loss(z, codes)
        base = reconstruction + (training.codebook_weight * codebook if quantize else 0)
        if training.coarse_weight:
            base = base + training.coarse_weight * coarse_loss(x, recon, factor)
        if any(training.anchors) and not quantize:
            base = base + training.anchor_weight * anchor_loss(x, z, training.anchors, factor)
        perceptual = self.perceptual(x, recon).mean() if self.perceptual else jt.zeros(1)
        if self.perceptual:
            base = base + training.perceptual_weight * perceptual
        adversarial = step >= training.discriminator_start
        generator = -self.discriminator(recon).mean() if adversarial else jt.zeros(1)
        return _Forward(reconstruction, codebook, perceptual, base, generator, recon, z, index)

    def _adversary_weight(self, step, batch, pieces, made):
        """The factor of the generator's loss, from the gradients of the whole batch at the decoder's last layer."""
        last, sums = self.network.decoder.conv_out.weight, None
        for part, share in pieces:
            forward = made[0] if made else self._forward(step, batch[part])
            losses = forward.reconstruction, forward.generator
            values = [share * jt.grad(loss, last, retain_graph=True).detach() for loss in losses]
            sums = values if sums is None else [a + b for a, b in zip(sums, values, strict=True)]
            jt.sync(sums)
        ratio = adaptive_weight(*all_reduce_vars(sums))
        ramp = min(1.0, (step - self.training.discriminator_start + 1) / max(1, self.training.discriminator_ramp))
        return ramp * self.training.discriminator_weight * ratio

    def update(self, step, rate, gradients):
        for each in gradients:
            each.apply(rate)
        self.ema.update(step)
        if self.found is not None:
            self._count_codes(step)

    def _start_quantizing(self, step):
        """Whitens the latents, so that the codebook serves all their directions alike, and fills it with latents."""
        latents = self._latents()
        mean, covariance = latents.mean(0), np.atleast_2d(np.cov(latents, rowvar=False))
        values, axes = np.linalg.eigh(covariance)
        matrix = (axes / np.sqrt(np.maximum(values, 1e-6 * values.max()))).T  # a direction without use stays small
        self.ema.assign(transformed(self.ema.arrays(), matrix, mean))
        load_into(self.network, transformed(arrays_of(self.network), matrix, mean), "whitened latents")
        self._renew_codes(step, (latents - mean) @ matrix.T, np.arange(self.config.autoencoder.n_embed))

    def _latents(self):
        """E(x) of at most 256 training photos, one row a position (M, D)."""
        rows = []
        for name in self.folder.names[:: -(-len(self.folder) // 256)]:
            with jt.no_grad():
                z = self.network.encode(jt.array(from_pixels(self._photo(self.folder, name)[None]))).numpy()
            rows.append(z[0].reshape(len(z[0]), -1).T)
        return np.concatenate(rows).astype(np.float64)

    def _counts_of_codes(self):
        index = self.found[0]
        return self.usage.numpy() + all_reduce(np.bincount(index, minlength=self.usage.shape[0]))

    def _share_of_codes(self):
        """Share of the codes used since the last revival."""
        return float((self._counts_of_codes() > 0).mean())

    def _count_codes(self, step):
        """Notes the codes used by a step; every so often codes without use move to latents of it."""
        counts, every = self._counts_of_codes(), self.training.revive_codes_every
        if every and step % every == 0:
            z = all_gather(self.found[1], self.training.batch)
            self._renew_codes(step, z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1]), np.flatnonzero(counts == 0))
            counts[:] = 0
        self.usage.assign(jt.array(counts.astype(np.float32)))

    def _renew_codes(self, step, latents, which):
        """Sets the codes with the indices `which`, and their averages, to rows drawn from `latents` (M, D)."""
        chosen = latents[step_generator(self.config.seed, step, NEW_CODES).integers(0, len(latents), len(which))]
        for weight in (self.network.quantize.embedding.weight, self.ema.average["quantize.embedding.weight"]):
            codes = weight.numpy().copy()
            codes[which] = chosen.astype(np.float32)
            weight.assign(jt.array(codes))

    def save(self, step):
        path = self.run / "autoencoder-latest.safetensors"
        save_checkpoint(path, "autoencoder", self.ema.arrays(), self.config, step, "float32")

    def sheet(self, step):
        quantize = step > self.training.quantize_from
        self.ema.swap()
        with jt.no_grad():
            pictures = [
                to_pixels(self.network(jt.array(from_pixels(p[None])), quantize)[0].numpy())[0] for p in self.shown
            ]
        self.ema.swap()
        quality = psnr_ssim(self.shown, pictures)
        sheet = sheet_of([self.shown, pictures], ["photo", "reconstruction"])
        with written_whole(self.run / f"autoencoder-{step:07d}.jpg") as path:
            Image.fromarray(sheet).save(path, quality=92)
        with Table(self.run / "autoencoder-quality.csv", ("step", "psnr", "ssim"), step - 1) as table:
            table.write(step=step, **dict(zip(("psnr", "ssim"), quality, strict=True)))
        return sheet


def normalise_latents(network, mean, std):
    """Rescales the latents of a trained autoencoder to mean 0 and standard deviation 1 without changing what it does.

    mean (D) and std (a number) are those of E(x) over the training photos. One factor serves all channels, so that
    nearest codes stay nearest. The noise of the diffusion has unit variance, and E(x) is diffused as it is: its scale
    decides what a start index means.
    """
    load_into(network, transformed(arrays_of(network), np.eye(len(mean)) / std, mean), "normalised latents")


def transformed(tensors, matrix, mean):
    """An autoencoder's tensors (names to arrays) after a change of its latents z to matrix (z - mean).

    matrix (D, D) and mean (D) are folded into quant_conv, the codebook and post_quant_conv. The decoder sees the same
    as before, but for codes that are not nearest any more where the matrix is no scaled rotation.
    """
    inverse, result = np.linalg.inv(matrix), dict(tensors)
    result["quant_conv.weight"] = np.einsum("ij,jkhw->ikhw", matrix, tensors["quant_conv.weight"])
    result["quant_conv.bias"] = matrix @ (tensors["quant_conv.bias"] - mean)
    result["quantize.embedding.weight"] = (tensors["quantize.embedding.weight"] - mean) @ matrix.T
    result["post_quant_conv.weight"] = np.einsum("ijhw,jk->ikhw", tensors["post_quant_conv.weight"], inverse)
    result["post_quant_conv.bias"] = (
        tensors["post_quant_conv.bias"] + tensors["post_quant_conv.weight"][:, :, 0, 0] @ mean
    )
    return {name: value.astype(np.float32) for name, value in result.items()}
