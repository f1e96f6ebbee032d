"""Further training of an autoencoder; by default of its decoder alone, so that latents keep their meaning.

The losses are L1, the distance of EfficientNet-Lite0's features, and a projected discriminator on the same features
(Sauer et al. 2021), with `patch_channels` also on the pixels.
"""
from jiidm.checkpoint import arrays_of, load_checkpoint, load_into, save_checkpoint, source_of
from jiidm.foreign.efficientnet import load_efficientnet
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import round_operands
from jiidm.models.discriminator import ProjectedDiscriminator
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn
from jiidm.training.adversarial import generator_loss, hinge_loss
from jiidm.training.autoencoder import latents_of_photos, normalise_latents
from jiidm.training.crops import CropTrainer
from jiidm.training.losses import feature_distance, quantizer_loss
from jiidm.training.trainer import Losses

_TAPS = 0, 2, 3, 5  # the stem and the stages at 1/4, 1/8 and 1/16 of the size


class DecoderTrainer(CropTrainer):
    """Trains an autoencoder further on the photos of a `TrainingFolder`.

    Args:
        start: path of the autoencoder; its encoder and codebook stay as they are unless `train_decoder.encoder` is set.
        others: as for `Trainer`.
    """

    stage, title = "decoder", "the decoder"
    columns = ("reconstruction", "perceptual", "generator", "discriminator")
    sections = ("image", "autoencoder", "train_decoder")

    def __init__(self, config, samples, run, start, validation=None, tensorboard=False):
        super().__init__(config, samples, run, validation, tensorboard)
        self.start = start

    def build_networks(self):
        checkpoint = load_checkpoint(self.start, "autoencoder")
        if checkpoint.config.autoencoder != self.config.autoencoder:
            raise InputError(f"{self.start}: its network differs from the configuration's autoencoder section")
        self.source = source_of(self.start, checkpoint.step)
        self.autoencoder, self.features = Autoencoder(self.config.autoencoder), load_efficientnet("lite0")
        load_into(self.autoencoder, checkpoint.tensors, self.start)
        if self.training.precision == "bf16":
            round_operands(self.autoencoder if self.training.encoder else self.autoencoder.decoder)
        self.network = self.autoencoder if self.training.encoder else _Decoding(self.autoencoder)
        channels = [self.features.channels[tap] for tap in _TAPS]
        self.discriminator = ProjectedDiscriminator(channels, self.training.discriminator_channels,
                                                    self.training.patch_channels)
        self.set_learners()

    def losses(self, step, part):
        x, training = jt.array(part[0]), self.training
        with jt.no_grad():
            real = self.features.features(x, _TAPS)
            jt.sync(real)
        recon, quantizer = self._forward(x)
        fake = self.features.features(recon, _TAPS)
        reconstruction, perceptual = jt.abs(x - recon).mean(), feature_distance(real, fake)
        total = reconstruction + training.perceptual_weight * perceptual + quantizer
        since = step - training.discriminator_start
        if since < 0:
            return Losses([total], [reconstruction, perceptual, jt.zeros(1), jt.zeros(1)])
        generator = _mean([generator_loss(scores) for scores in self.discriminator(fake, recon)])
        judged = _mean([hinge_loss(*scores) for scores in zip(
            self.discriminator(real, x), self.discriminator([f.detach() for f in fake], recon.detach()), strict=True)])
        ramp = min(1.0, since / max(1, training.discriminator_ramp))
        total = total + ramp * training.discriminator_weight * generator
        return Losses([total, judged], [reconstruction, perceptual, generator, judged])

    def _forward(self, x):
        """Returns D(E(x)) and the quantiser's loss, 0 where the codebook is frozen."""
        if self.training.encoder:
            recon, z, codes, _ = self.autoencoder(x)
            return recon, quantizer_loss(z, codes)
        with jt.no_grad():
            codes, _ = self.autoencoder.quantize(self.autoencoder.encode(x))
            jt.sync([codes])
        return self.network(codes), 0.0

    def reconstruct(self, x, step):
        return self.autoencoder(x)[0]

    def save_weights(self, path, step):
        self._save(path, step, {**arrays_of(self.autoencoder), **self.ema.arrays()})

    def _save(self, path, step, tensors):
        save_checkpoint(path, "autoencoder", tensors, self.config, step, "float32",
                        f"{'autoencoder' if self.training.encoder else 'decoder'} trained further", [self.source])

    def finish(self):
        """Writes the averaged weights; a trained encoder's latents are normalised over the training photos."""
        self.ema.swap()
        if self.training.encoder:
            normalise_latents(self.autoencoder, latents_of_photos(self.autoencoder, self.samples, self.config.image))
        self._save(self.result, self.training.steps, arrays_of(self.autoencoder))


class _Decoding(nn.Module):
    """The trained part of an `Autoencoder`: codes N, D, h, w -> pictures N, 3, H, W."""

    def __init__(self, autoencoder):
        self.decoder, self.post_quant_conv = autoencoder.decoder, autoencoder.post_quant_conv

    def execute(self, codes):
        return self.decoder(self.post_quant_conv(codes))


def _mean(losses):
    return sum(losses) / len(losses)
