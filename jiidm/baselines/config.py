"""Configuration of a baseline and its training: GauGAN (Park et al. 2019) and CLADE (Tan et al. 2021)."""
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from jiidm.checkpoint import checkpoint_of
from jiidm.config import (
    Enlargement,
    Fraction,
    ImageConfig,
    Positive,
    Range,
    TrainingConfig,
    check_training,
    check_values,
)
from jiidm.data.labels import CLASSES
from jiidm.system.errors import InputError

NORMS = {"spade": "gaugan", "clade": "clade", "clade_icpe": "clade"}  # of the generator, and the model that it makes
MODELS = tuple(dict.fromkeys(NORMS.values()))  # the kinds of their files


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator and the encoder of its style photo; the defaults are GauGAN's.

    Attributes:
        norm: "spade", "clade", or "clade_icpe" with intra-class positional encoding.
        num_classes: labels of the label maps.
        ngf: width of the last block; the first ones are 16 times as wide.
        upsampling: doublings of the size. 5, 6 and 7 are the published "normal", "more" and "most"; 4 leaves out the
            first doubling.
        spade_channels: width between mask and maps in SPADE.
        style_channels: size of a style; 0: no style, the mask is the input.
        encoder_channels: width of the style encoder's first layer.
        style_size: side of the style photos that it sees, in pixels.
    """

    norm: Literal["spade", "clade", "clade_icpe"] = "spade"
    num_classes: Positive = len(CLASSES)
    ngf: Annotated[int, Range(2)] = 64
    upsampling: Annotated[int, Range(4, 7)] = 5
    spade_channels: Positive = 128
    style_channels: int = 256
    encoder_channels: Positive = 64
    style_size: int = 256

    @property
    def model(self):
        """The name of the model: "gaugan" or "clade"."""
        return NORMS[self.norm]

    @property
    def positional(self):
        """Whether the generator takes maps of positions within the classes' regions."""
        return self.norm == "clade_icpe"


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The multi-scale PatchGAN (Wang et al. 2018).

    Attributes:
        channels: width of the first layer.
        layers: 4x4 convolutions before the scores.
        scales: how many networks there are, each for half the size of the one before.
    """

    channels: Positive = 64
    layers: Annotated[int, Range(2)] = 4
    scales: Positive = 2


@dataclass(frozen=True)
class GeneratorTrainingConfig(TrainingConfig):
    """Training of generator, encoder and discriminator together, on whole pictures.

    The optimiser is Adam with betas (0, 0.9). There are no micro-batches: batch normalisation needs the whole batch.

    Attributes:
        discriminator_learning_rate: the peak of the discriminator's rate (Heusel et al. 2017).
        feature_weight: weight of feature matching.
        kl_weight: weight of the encoder's divergence from a standard normal.
        perceptual_weight: weight of the loss by VGG-19; the paper's is 10.
        perceptual_file: the file of VGG-19's weights.
        scale: photos are enlarged by a random factor of up to this before the crop.
        calibrate: batches from which the averaged network gets its statistics of batch normalisation before it is
            saved or shown.
    """

    steps: Positive = 125_000
    batch: Positive = 32
    discriminator_learning_rate: float = 4e-4
    decay_from: Fraction = 0.5
    feature_weight: float = 10.0
    kl_weight: float = 0.05
    perceptual_weight: float = 0.0
    perceptual_file: str = ""
    scale: Enlargement = 286 / 256
    calibrate: int = 8
    loss_limit: float = 0.0
    micro_batch: Annotated[int, Range(0, 0)] = 0

    def check(self, name: str, config: Any) -> None:
        super().check(name, config)
        if self.perceptual_weight and not self.perceptual_file:
            raise InputError(f"{name}.perceptual_file: expected the file of VGG-19's weights for a perceptual_weight "
                             f"above 0")


@dataclass(frozen=True)
class BaselineRun:
    """Everything that defines a baseline and its training: the sections of its YAML file."""

    image: ImageConfig = field(default_factory=ImageConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    train_generator: GeneratorTrainingConfig = field(default_factory=GeneratorTrainingConfig)
    seed: int = 0


def baseline_checkpoint(path, tensors, metadata):
    """The `Checkpoint` of a file of GauGAN or CLADE, its config a `BaselineRun`; raises InputError for another kind."""
    checkpoint = checkpoint_of(path, metadata, tensors, MODELS, BaselineRun, f"one of {', '.join(MODELS)}")
    check_generator(checkpoint.config.generator, checkpoint.config.image)
    return checkpoint


def check_generator(generator, image):
    """Raises InputError where the values of a `GeneratorConfig` are out of range or contradict an `ImageConfig`."""
    check_values(generator, "generator.")
    factor = 2**generator.upsampling
    for name, side in (("width", image.width), ("height", image.height)):
        if side < 1 or side % factor:
            raise InputError(f"image.{name} {side}: expected a multiple of {factor}, which is 2 to the power of "
                             f"generator.upsampling, {generator.upsampling}")
    size = generator.style_size
    if generator.style_channels and (size < 16 or size & (size - 1)):
        raise InputError(f"generator.style_size {size}: expected a power of two of at least 16")


def check_run(config):
    """Raises InputError where the sections of a `BaselineRun` cannot be trained as they are."""
    check_generator(config.generator, config.image)
    check_training(config, "train_generator")
    discriminator = config.discriminator
    check_values(discriminator, "discriminator.")
    if config.generator.num_classes > len(CLASSES):
        raise InputError(f"generator.num_classes {config.generator.num_classes}: expected at most {len(CLASSES)}, the "
                         f"classes of the label maps")
    smaller = min(config.image.width, config.image.height)
    if smaller // 2 ** (discriminator.scales - 1) < 2**discriminator.layers:
        raise InputError(f"discriminator: {discriminator.scales} scales of {discriminator.layers} layers are too many "
                         f"for pictures of {config.image.width}x{config.image.height}; take fewer")
