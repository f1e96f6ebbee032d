"""What every training has in common, and the sections of the trainings of IIDM's networks.

A training's section is a subclass of `TrainingConfig` with the defaults of the paper; its `check` says what cannot be
trained. Those of the segmenter, the judge and the baselines are beside their trainers.
"""
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from jiidm.config.values import Enlargement, Fraction, Positive, Range, check_values
from jiidm.system.errors import InputError

Anchor = Literal["", "brightness", "red_green", "yellow_blue"]
COLOR_AXES = typing.get_args(Anchor)[1:]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class TrainingConfig:
    """What all trainings have. Intervals are in optimiser steps; 0 switches a part off.

    Attributes:
        steps: optimiser steps of the whole training.
        batch: samples a step, over all processes.
        learning_rate: the peak.
        warmup: steps over which the rate rises linearly.
        decay_from: fraction of the steps after which the rate falls, as a half cosine to 1 % of the peak.
        ema: decay of the weights' exponential moving average.
        save_every: interval of saved states and of STAGE-latest.safetensors.
        sheet_every: interval of sample grids; the last step has one, too.
        keep_last: how many of the newest states are kept.
        keep_every: states at multiples of this step are kept as well.
        loss_limit: a step whose first loss exceeds this multiple of its running median is a bad one.
        skip_bad_steps: so many bad steps, non-finite ones included, change nothing; the next one ends the run.
        micro_batch: samples computed at a time: less memory, the same result (0: the whole batch).
    """

    steps: Positive = 1
    batch: Positive = 8
    learning_rate: float = 1e-4
    warmup: int = 0
    decay_from: Fraction = 1.0
    ema: Fraction = 0.999
    save_every: int = 5000
    sheet_every: int = 5000
    keep_last: Positive = 2
    keep_every: int = 0
    loss_limit: float = 100.0
    skip_bad_steps: int = 0
    micro_batch: int = 0

    def check(self, name: str, config: Any) -> None:
        """Checks the section, alone and beside the others.

        Args:
            name: of the section, for the message.
            config: the whole configuration, a `Config` or what else has this section.

        Raises:
            InputError: a value is out of its range, or contradicts another one.
        """
        check_values(self, f"{name}.")
        if self.learning_rate <= 0:
            raise InputError(f"{name}.learning_rate {self.learning_rate:g}: expected more than 0")
        if 0 < self.loss_limit <= 1:
            raise InputError(f"{name}.loss_limit {self.loss_limit:g}: expected more than 1 times the median, or 0 for "
                             f"no limit")


def check_training(config: Any, *names: str) -> None:
    """Raises InputError where the sections called `names` of a configuration, or its seed, cannot be trained."""
    for name in names:
        getattr(config, name).check(name, config)
    if config.seed >= 2**32:
        raise InputError(f"seed {config.seed}: expected less than 2**32")


def _check_crop(crop, name, config):
    image, factor = config.image, config.autoencoder.factor
    if crop > min(image.width, image.height) or crop % factor:
        raise InputError(f"{name}.crop {crop}: expected a multiple of {factor}, at most the smaller side of the "
                         f"picture of {image.width}x{image.height}")


@dataclass(frozen=True)
class AutoencoderTrainingConfig(TrainingConfig):
    """Training of the autoencoder on random crops.

    Attributes:
        crop: side of the square crops, in pixels.
        scale: photos are enlarged by a random factor of up to this before the crop.
        coarse_weight: weight of the L1 between colour means over each latent position.
        anchors: for each latent channel the colour mean it is drawn to, "" for none; without, short runs leave the
            colours out of the latents.
        anchor_weight: weight of the L1 between anchored channels and their colour means.
        perceptual_weight: weight of LPIPS.
        perceptual_files: the files of VGG-16's and of LPIPS's weights.
        codebook_weight: weight of the quantiser's loss.
        quantize_from: until this step the decoder reads the latents themselves. Then the latents are whitened, the
            anchors end, and the codebook starts from latents of the photos. A random codebook (0) collapses in short
            runs.
        discriminator_start: the discriminator learns from this step on.
        discriminator_ramp: steps over which its weight in the loss grows to full.
        discriminator_weight: factor of the adaptive weight (Esser et al. 2021, eq. 7).
        discriminator_channels: width of its first layer.
        discriminator_layers: its strided layers.
        revive_codes_every: interval at which codes without use move to latents of the batch.
    """

    steps: Positive = 200_000
    crop: Positive = 256
    scale: Enlargement = 1.0
    learning_rate: float = 4.5e-6 * 8
    warmup: int = 500
    coarse_weight: float = 0.0
    anchors: tuple[Anchor, ...] = ()
    anchor_weight: float = 1.0
    perceptual_weight: float = 0.0
    perceptual_files: tuple[str, ...] = ()
    codebook_weight: float = 1.0
    quantize_from: int = 0
    discriminator_start: int = 100_000
    discriminator_ramp: int = 0
    discriminator_weight: float = 0.8
    discriminator_channels: Annotated[int, Range(4)] = 64
    discriminator_layers: Annotated[int, Range(1, 16)] = 3
    revive_codes_every: int = 0

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        _check_crop(self.crop, name, config)
        if self.perceptual_weight and (len(self.perceptual_files) != 2 or self.crop < 16):
            raise InputError(f"{name}.perceptual_files {list(self.perceptual_files)}: expected two files, the weights "
                             f"of VGG-16 and of LPIPS, and a crop of at least 16")
        if self.quantize_from >= self.steps:
            raise InputError(f"{name}.quantize_from {self.quantize_from}: expected less than the {self.steps} steps")
        if self.discriminator_channels % 4:
            raise InputError(f"{name}.discriminator_channels {self.discriminator_channels}: expected a multiple of 4")
        least = 3 * 2**self.discriminator_layers
        if self.discriminator_start < self.steps and self.crop < least:
            raise InputError(f"{name}.crop {self.crop}: a discriminator of {self.discriminator_layers} layers sees no "
                             f"patch of it; expected at least {least}, or fewer discriminator_layers")
        if len(self.anchors) > config.autoencoder.embed_dim:
            raise InputError(f"{name}.anchors {list(self.anchors)}: expected at most {config.autoencoder.embed_dim}, "
                             f"one a latent channel")


@dataclass(frozen=True)
class DecoderTrainingConfig(TrainingConfig):
    """Training of the decoder alone, on random crops; the discriminator looks at EfficientNet-Lite0's features.

    Attributes:
        encoder: train the encoder and the codebook too. Latents change: encode anew, and train the UNet after.
        crop: side of the square crops, in pixels.
        scale: photos are enlarged by a random factor of up to this before the crop.
        perceptual_weight: weight of the distance of EfficientNet-Lite0's features.
        discriminator_start: the discriminator learns from this step on.
        discriminator_ramp: steps over which its weight in the loss grows to full.
        discriminator_weight: that weight.
        discriminator_channels: its width, a multiple of 8.
        patch_channels: of a PatchGAN on the pixels beside it, a multiple of 4, for fine texture; 0 for none.
        precision: as for the UNet; the discriminator and the features stay fp32.
    """

    encoder: bool = False
    steps: Positive = 20_000
    crop: Positive = 256
    scale: Enlargement = 1.0
    learning_rate: float = 3e-4
    warmup: int = 50
    decay_from: Fraction = 0.5
    ema: Fraction = 0.995
    perceptual_weight: float = 1.0
    discriminator_start: int = 0
    discriminator_ramp: int = 0
    discriminator_weight: float = 0.1
    discriminator_channels: Annotated[int, Range(8)] = 64
    patch_channels: Annotated[int, Range(0)] = 0
    precision: Precision = "fp32"

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        _check_crop(self.crop, name, config)
        if self.discriminator_channels % 8:
            raise InputError(f"{name}.discriminator_channels {self.discriminator_channels}: expected a multiple of 8")
        if self.patch_channels % 4:
            raise InputError(f"{name}.patch_channels {self.patch_channels}: expected a multiple of 4")
        if self.patch_channels and self.crop < 6:
            raise InputError(f"{name}.crop {self.crop}: expected at least 6 with patch_channels")


@dataclass(frozen=True)
class UNetTrainingConfig(TrainingConfig):
    """Training of the UNet on latents; `loss_limit` watches the squared error.

    Attributes:
        weight_decay: AdamW's.
        mask_drop: probability that a sample's label map is left out, for classifier-free guidance.
        hand_drawn: probability that a label map is changed to look drawn by hand: edges moved, regions left out.
        focus_below: four of five timesteps are drawn below this one, where the recipe's rounds go; 0 for none.
        keep_at: steps whose averaged weights are kept as unet-STEP.safetensors; the last one is `steps`.
        checkpoint_blocks: gradient checkpointing: a third more time, less memory, the same result.
        views: versions of each photo in the store, each with its mirror image; the first is the whole photo.
        scale: the further views are enlarged by a random factor of up to this and cropped.
        encode_on_the_fly: no store; photos are mirrored, scaled and encoded anew for each batch.
        precision: "bf16" (CUDA) rounds the operands of convolutions to bfloat16, forward and backward; weights and
            sums stay fp32.
        by_hand_weight: how often the photos that the data folder's by_hand.txt names are drawn, relative to the others.
    """

    steps: Positive = 266_000
    batch: Positive = 30
    ema: Fraction = 0.9999
    weight_decay: float = 0.0
    mask_drop: Fraction = 0.2
    hand_drawn: Fraction = 0.0
    focus_below: Annotated[int, Range(0)] = 0
    keep_at: tuple[Positive, ...] = (176_000, 266_000)
    checkpoint_blocks: bool = False
    views: Positive = 1
    scale: Enlargement = 1.0
    encode_on_the_fly: bool = False
    precision: Precision = "fp32"
    by_hand_weight: Annotated[float, Range(0.1, 100)] = 1.0

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        if self.encode_on_the_fly and self.views > 1:
            raise InputError(f"{name}.views {self.views}: is for the store; expected 1 with encode_on_the_fly")
        if not self.encode_on_the_fly and (self.scale > 1) != (self.views > 1):
            raise InputError(f"{name}.scale {self.scale:g}, views {self.views}: expected both above 1 (the further "
                             f"views of a photo in the store are the enlarged ones), or neither")
        if not self.keep_at or max(self.keep_at) != self.steps:
            raise InputError(f"{name}.keep_at {list(self.keep_at)}: expected steps, the last being {name}.steps, "
                             f"{self.steps}")
