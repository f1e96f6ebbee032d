"""What a baseline and its training are made of: GauGAN (Park et al. 2019) and CLADE (Tan et al. 2021)."""
from dataclasses import dataclass, field

from jiidm.checkpoint import checkpoint_of
from jiidm.config import ImageConfig, load_config
from jiidm.data.labels import CLASSES
from jiidm.system.errors import InputError

NORMS = {"spade": "gaugan", "clade": "clade", "clade_icpe": "clade"}  # of the generator, and the model that has it
MODELS = tuple(dict.fromkeys(NORMS.values()))  # the kinds of their files
_FEWEST, _MOST = 4, 7  # doublings of the size in the generator


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator and the encoder of its style photo; the defaults are GauGAN's.

    `norm` is "spade", "clade", or "clade_icpe" with intra-class positional encoding. `ngf` is the width of the last
    block, 16 times of which the first ones have. From its first layer on the picture's size doubles `upsampling` times:
    5, 6 and 7 are the published "normal", "more" and "most"; 4 does without the first doubling. `spade_channels` is the
    width between mask and maps in SPADE. The encoder is `encoder_channels` wide at first and sees a style photo of
    `style_size` x `style_size` pixels, which becomes `style_channels` numbers (0: no style, the mask is the input).
    """

    norm: str = "spade"
    num_classes: int = len(CLASSES)
    ngf: int = 64
    upsampling: int = 5
    spade_channels: int = 128
    style_channels: int = 256
    encoder_channels: int = 64
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
    """The multi-scale PatchGAN (Wang et al. 2018): `scales` networks of `layers` 4x4 convolutions before the scores."""

    channels: int = 64
    layers: int = 4
    scales: int = 2


@dataclass(frozen=True)
class GeneratorTrainingConfig:
    """Training of generator, encoder and discriminator together. A step takes `batch` whole pictures.

    Adam with the betas (0, 0.9); the generator learns with `learning_rate`, the discriminator with
    `discriminator_learning_rate` (Heusel et al. 2017), both falling from the share `decay_from` of the run on.
    `feature_weight` is that of feature matching, `kl_weight` that of the encoder's divergence from a standard normal.
    `perceptual_weight` (the paper's is 10) needs `perceptual_file`, the weights of VGG-19. Photos are enlarged by a
    random factor of up to `scale` before the crop. `calibrate` batches give the averaged network its statistics of
    batch normalisation before it is saved or shown. The others are the other trainings'; there are no micro-batches,
    because batch normalisation makes a batch more than its parts.
    """

    steps: int = 125_000
    batch: int = 32
    learning_rate: float = 1e-4
    discriminator_learning_rate: float = 4e-4
    warmup: int = 0
    decay_from: float = 0.5
    ema: float = 0.999
    feature_weight: float = 10.0
    kl_weight: float = 0.05
    perceptual_weight: float = 0.0
    perceptual_file: str = ""
    scale: float = 286 / 256
    calibrate: int = 8
    save_every: int = 5000
    sheet_every: int = 5000
    keep_last: int = 2
    keep_every: int = 0
    loss_limit: float = 0.0
    skip_bad_steps: int = 0


@dataclass(frozen=True)
class BaselineRun:
    """Everything that defines a baseline and the run that made it: its YAML file has these sections."""

    image: ImageConfig = field(default_factory=ImageConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    train_generator: GeneratorTrainingConfig = field(default_factory=GeneratorTrainingConfig)
    seed: int = 0


def load_baseline_run(path):
    """Reads a `BaselineRun` from the YAML file `path`; raises InputError that names the file and the key."""
    return load_config(path, BaselineRun)


def baseline_checkpoint(path, tensors, metadata):
    """The `Checkpoint` of a file of GauGAN or CLADE, its config a `BaselineRun`; raises InputError for another kind."""
    checkpoint = checkpoint_of(path, metadata, tensors, MODELS, BaselineRun, f"one of {', '.join(MODELS)}")
    check_generator(checkpoint.config.generator, checkpoint.config.image)
    return checkpoint


def check_generator(generator, image):
    """Raises InputError where the numbers of a `GeneratorConfig` contradict each other or an `ImageConfig`."""
    if generator.norm not in NORMS:
        raise InputError(f"generator.norm {generator.norm!r}: expected one of {', '.join(NORMS)}")
    if not _FEWEST <= generator.upsampling <= _MOST:
        raise InputError(f"generator.upsampling {generator.upsampling}: expected {_FEWEST} to {_MOST}")
    factor = 2**generator.upsampling
    for name, side in (("width", image.width), ("height", image.height)):
        if side < 1 or side % factor:
            raise InputError(f"image.{name} {side}: expected a multiple of {factor}, which is 2 to the power of "
                             f"generator.upsampling, {generator.upsampling}")
    if generator.ngf < 2 or min(generator.spade_channels, generator.num_classes, generator.encoder_channels) < 1:
        raise InputError("generator: ngf: expected at least 2; spade_channels, num_classes and encoder_channels: at "
                         "least 1")
    size = generator.style_size
    if generator.style_channels and (size < 16 or size & (size - 1)):
        raise InputError(f"generator.style_size {size}: expected a power of two of at least 16")


def check_run(config):
    """Raises InputError where the sections of a `BaselineRun` cannot be trained as they are."""
    check_generator(config.generator, config.image)
    training, adversary = config.train_generator, config.discriminator
    if config.generator.num_classes > len(CLASSES):
        raise InputError(f"generator.num_classes {config.generator.num_classes}: expected at most {len(CLASSES)}, the "
                         f"classes of the label maps")
    if min(training.steps, training.batch, training.keep_last) < 1 or config.seed >= 2**32:
        raise InputError("train_generator: steps, batch and keep_last: expected at least 1; seed: less than 2**32")
    if training.learning_rate <= 0:
        raise InputError(f"train_generator.learning_rate {training.learning_rate:g}: expected more than 0")
    if training.scale < 1:
        raise InputError(f"train_generator.scale {training.scale:g}: expected at least 1, photos as they are")
    if 0 < training.loss_limit <= 1:
        raise InputError("train_generator.loss_limit: expected more than 1 times the median, or 0 for no limit")
    if training.perceptual_weight and not training.perceptual_file:
        raise InputError("train_generator.perceptual_file: expected the file of VGG-19's weights for a "
                         "perceptual_weight above 0")
    if min(adversary.channels, adversary.scales) < 1 or adversary.layers < 2:
        raise InputError("discriminator: expected channels and scales of at least 1, layers of at least 2")
    smaller = min(config.image.width, config.image.height) // 2 ** (adversary.scales - 1)
    if smaller < 2**adversary.layers:
        raise InputError(f"discriminator: {adversary.scales} scales of {adversary.layers} layers are too many for "
                         f"pictures of {config.image.width}x{config.image.height}; take fewer")
