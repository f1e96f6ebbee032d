"""Training of the autoencoder (Esser et al. 2021): L1, quantiser, on request LPIPS, later a PatchGAN."""
from typing import NamedTuple

import numpy as np

from jiidm.checkpoint import arrays_of, load_into, save_checkpoint
from jiidm.data.pictures import fit_photo, from_pixels
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.discriminator import PatchDiscriminator
from jiidm.system.distributed import all_gather, all_reduce, broadcast_vars
from jiidm.system.runtime import jt, transposed
from jiidm.training.adversarial import adaptive_weight_of_batch, generator_loss, hinge_loss
from jiidm.training.crops import CropTrainer
from jiidm.training.losses import anchor_loss, coarse_loss, quantizer_loss
from jiidm.training.perceptual import Perceptual
from jiidm.training.trainer import Losses

_MOST_PHOTOS = 256  # whose latents give mean and covariance


class _Forward(NamedTuple):
    """What the autoencoder computes of a micro-batch, and its losses."""

    photos: jt.Var
    recon: jt.Var
    z: jt.Var
    index: jt.Var
    total: jt.Var  # without the adversarial loss
    reconstruction: jt.Var
    codebook: jt.Var
    perceptual: jt.Var
    generator: jt.Var


class AutoencoderTrainer(CropTrainer):
    """Trains `config.autoencoder` on the photos of a `TrainingFolder`."""

    stage, title = "autoencoder", "the autoencoder"
    columns = ("reconstruction", "codebook", "perceptual", "generator", "discriminator", "codes_used")
    sections = ("image", "autoencoder", "train_autoencoder")

    def build_networks(self):
        training, self.perceptual = self.training, None
        if training.perceptual_weight:
            self.perceptual = Perceptual.from_file(*training.perceptual_files)
        self.network = Autoencoder(self.config.autoencoder)
        self.discriminator = PatchDiscriminator(training.discriminator_channels, training.discriminator_layers)
        self.set_learners()

    def build(self):
        super().build()
        self.usage = jt.zeros((self.config.autoencoder.n_embed,)).detach()  # how often each code was chosen
        self.state.variables["usage"] = self.usage
        return self

    def _quantizes(self, step):
        return step >= self.training.quantize_from

    def _is_adversarial(self, step):
        return step >= self.training.discriminator_start

    def begin(self, step):
        if step and step == self.training.quantize_from:
            self._start_quantizing(step)
            broadcast_vars([*self.network.parameters(), *self.ema.average.values()])

    def prepare(self, step, parts):
        # one micro-batch is kept from here to the gradients; of several each is computed again, to save memory
        self._kept = self._forward(step, parts[0][0]) if len(parts) == 1 else None
        if not self._is_adversarial(step):
            return
        forwards = ((weight, self._kept or self._forward(step, part)) for part, weight in parts)
        adaptive = adaptive_weight_of_batch(
            ((weight, forward.reconstruction, forward.generator) for weight, forward in forwards),
            self.network.decoder.conv_out.weight)
        ramp = min(1.0, (step - self.training.discriminator_start + 1) / max(1, self.training.discriminator_ramp))
        self._generator_weight = ramp * self.training.discriminator_weight * adaptive

    def losses(self, step, part):
        forward, self._kept = self._kept or self._forward(step, part), None
        objectives, judged = [forward.total], jt.zeros(1)
        if self._is_adversarial(step):
            judged = hinge_loss(self.discriminator(forward.photos), self.discriminator(forward.recon.detach()))
            objectives = [forward.total + self._generator_weight * forward.generator, judged]
        logged = [forward.reconstruction, forward.codebook, forward.perceptual, forward.generator, judged]
        return Losses(objectives, logged, (forward.recon, forward.z, forward.index))

    def _forward(self, step, part):
        x, training, factor = jt.array(part[0]), self.training, self.config.autoencoder.factor
        quantizes, nothing = self._quantizes(step), jt.zeros(1)
        recon, z, codes, index = self.network(x, quantizes)
        reconstruction, codebook = jt.abs(x - recon).mean(), quantizer_loss(z, codes)
        perceptual = self.perceptual(x, recon).mean() if self.perceptual else nothing
        total = reconstruction
        if quantizes:
            total = total + training.codebook_weight * codebook
        elif any(training.anchors):
            total = total + training.anchor_weight * anchor_loss(x, z, training.anchors, factor)
        if training.coarse_weight:
            total = total + training.coarse_weight * coarse_loss(x, recon, factor)
        if self.perceptual:
            total = total + training.perceptual_weight * perceptual
        generator = generator_loss(self.discriminator(recon)) if self._is_adversarial(step) else nothing
        return _Forward(x, recon, z, index, total, reconstruction, codebook, perceptual, generator)

    def compute(self, step, batch):
        losses, gradients = super().compute(step, batch)
        _, z, index = ([v.numpy() for v in values] for values in zip(*self.outputs, strict=True))
        self.outputs, self._latents, used = [], np.concatenate(z), 0.0
        if self._quantizes(step):
            index = np.concatenate([each.ravel() for each in index])
            self._counts = self.usage.numpy() + all_reduce(np.bincount(index, minlength=self.usage.shape[0]))
            used = float((self._counts > 0).mean())  # since the last revival
        return {**losses, "codes_used": used}, gradients

    def update(self, step, rate, gradients):
        super().update(step, rate, gradients)
        if self._quantizes(step):
            self._count_codes(step)

    # ----------------------------------------------------------------------------------------------- the codebook

    def _start_quantizing(self, step):
        """Whitens the latents, so that the codebook serves all their directions alike, and fills it with latents."""
        latents = latents_of_photos(self.network, self.samples, self.config.image)
        mean, covariance = latents.mean(0), np.atleast_2d(np.cov(latents, rowvar=False))
        values, axes = np.linalg.eigh(covariance)
        matrix = (axes / np.sqrt(np.maximum(values, 1e-6 * values.max()))).T  # a direction without use stays small
        self.ema.assign(transformed(self.ema.arrays(), matrix, mean))
        load_into(self.network, transformed(arrays_of(self.network), matrix, mean), "whitened latents")
        self._renew_codes(step, (latents - mean) @ matrix.T, np.arange(self.config.autoencoder.n_embed))

    def _count_codes(self, step):
        """Counts the codes that a step chose; every so often codes without use move to its latents."""
        every = self.training.revive_codes_every
        if every and step % every == 0:
            z = all_gather(self._latents, self.training.batch)
            unused = np.flatnonzero(self._counts == 0)
            self._renew_codes(step, transposed(z, 0, 2, 3, 1).reshape(-1, z.shape[1]), unused)
            self._counts[:] = 0
        self.usage.assign(jt.array(self._counts.astype(np.float32)))

    def _renew_codes(self, step, latents, which):
        """Sets the codes with the indices `which`, and their averages, to rows drawn from `latents` (M, D)."""
        drawn = latents[self.rng(step, "new codes").integers(0, len(latents), len(which))]
        for weight in (self.network.quantize.embedding.weight, self.ema.average["quantize.embedding.weight"]):
            codes = weight.numpy().copy()
            codes[which] = drawn.astype(np.float32)
            weight.assign(jt.array(codes))

    # ------------------------------------------------------------------------------------------------------ output

    def reconstruct(self, x, step):
        return self.network(x, self._quantizes(step - 1))[0]

    def save_weights(self, path, step):
        save_checkpoint(path, "autoencoder", self.ema.arrays(), self.config, step, "float32")

    def finish(self):
        """Writes the averaged weights, with latents normalised over the training photos."""
        self.ema.swap()
        normalise_latents(self.network, latents_of_photos(self.network, self.samples, self.config.image))
        arrays = arrays_of(self.network)
        save_checkpoint(self.result, "autoencoder", arrays, self.config, self.training.steps, "float32")


def latents_of_photos(network, folder, image):
    """Returns E(x) of evenly spread photos of a `TrainingFolder`, one row a position: M, D float64.

    Args:
        network: the `Autoencoder`.
        folder: the `TrainingFolder`.
        image: the `ImageConfig` with the photos' size.
    """
    rows = []
    for name in folder.names[:: -(-len(folder) // _MOST_PHOTOS)]:
        photo = fit_photo(folder.photo(name), image.width, image.height)
        with jt.no_grad():
            z = network.encode(jt.array(from_pixels(photo[None]))).numpy()
        rows.append(z[0].reshape(len(z[0]), -1).T)
    return np.concatenate(rows).astype(np.float64)


def normalise_latents(network, latents):
    """Rescales the latents of a trained autoencoder to mean 0 and std 1 without changing its pictures.

    The noise of the diffusion has unit variance: the scale of E(x) decides what a start index means. One scale for all
    channels keeps nearest codes nearest.

    Args:
        network: the `Autoencoder`.
        latents: E(x) of the training photos, M, D.
    """
    matrix = np.eye(latents.shape[1]) / np.sqrt(latents.var(0).mean())
    load_into(network, transformed(arrays_of(network), matrix, latents.mean(0)), "normalised latents")


def transformed(tensors, matrix, mean):
    """An autoencoder's tensors after its latents z are changed to matrix (z - mean).

    The change is folded into quant_conv, the codebook and post_quant_conv. The decoder sees what it saw before; only
    where the matrix is no scaled rotation, other codes may be the nearest ones.

    Args:
        tensors: names to arrays.
        matrix: D, D.
        mean: D.

    Returns:
        Names to float32 arrays.
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
