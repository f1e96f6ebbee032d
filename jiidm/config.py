"""What a network, a run and a recipe are made of: frozen dataclasses whose defaults are the paper's.

A configuration is data. It comes from a YAML file in `configs/` (any section or key may be left out) or from the
metadata of a checkpoint. The types say what a value may be: a `Literal` is one of its words, a `Range` a number within
its bounds, any other number is at least 0. `from_dict` checks them and names the key that is wrong.
"""
import dataclasses
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml

from jiidm.system.errors import InputError

Anchor = Literal["", "brightness", "red_green", "yellow_blue"]
COLOR_AXES = typing.get_args(Anchor)[1:]
Precision = Literal["fp32", "bf16"]
ColorTransfer = Literal["reinhard", "histogram", "transport"]
COLOR_TRANSFERS = typing.get_args(ColorTransfer)
RETIRED = {("inference", "class_noise"): 0.0}  # keys of older checkpoints, with the value that means nothing


_T = typing.TypeVar("_T")


class Range(NamedTuple):
    """The bounds of a number, both included (no `most`: no upper one)."""

    least: float
    most: float | None = None

    def __str__(self):
        return f"at least {self.least:g}" if self.most is None else f"a number from {self.least:g} to {self.most:g}"


Fraction = Annotated[float, Range(0, 1)]
Positive = Annotated[int, Range(1)]
ClassCount = Annotated[int, Range(1, 255)]  # label 255 is no class
Enlargement = Annotated[float, Range(1)]
Weight = Annotated[float, Range(0.1, 100)]


@dataclass(frozen=True)
class ImageConfig:
    """Size of the pictures that the networks are trained for, in pixels."""

    width: int = 512
    height: int = 384


@dataclass(frozen=True)
class AutoencoderConfig:
    """The VQ autoencoder (Esser et al. 2021; Rombach et al. 2022); its down-sampling factor is 2 ** (levels - 1)."""

    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 8192
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Pixels a side of a latent position."""
        return 2 ** (len(self.ch_mult) - 1)


@dataclass(frozen=True)
class UNetConfig:
    """The denoiser: a guided-diffusion UNet with SPADE in the middle and the decoder."""

    in_channels: int = 3
    num_classes: ClassCount = 29
    model_channels: int = 256
    channel_mult: tuple[int, ...] = (1, 1, 2, 3, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (4, 8, 16)
    head_channels: int = 64
    spade_channels: int = 128
    norm_groups: int = 32

    @property
    def factor(self) -> int:
        """Down-sampling factor of the deepest level; latents are padded to a multiple of it inside the network."""
        return 2 ** (len(self.channel_mult) - 1)


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process, what the network predicts of it, and how the loss weighs the timesteps.

    Attributes:
        timesteps: how many there are; their betas rise linearly from `beta_start` to `beta_end`.
        prediction: "epsilon" (the paper's) or "v" (Salimans & Ho 2022).
        zero_terminal_snr: rescale the betas so that no signal is left at the last timestep (Lin et al. 2023); needs
            "v".
        loss_weight: "uniform", or "min_snr" for Min-SNR with `min_snr_gamma` (Hang et al. 2023).
    """

    timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    prediction: Literal["epsilon", "v"] = "epsilon"
    zero_terminal_snr: bool = False
    loss_weight: Literal["uniform", "min_snr"] = "uniform"
    min_snr_gamma: float = 5.0


@dataclass(frozen=True)
class RoundConfig:
    """One round of noising and denoising.

    Attributes:
        guidance: the scale, at least 0; 1 is no guidance, 0 ignores the mask.
        respacing: "ddimN", the chain of N timesteps out of all.
        start: the index in the chain that latents are noised to.
    """

    guidance: float = 3.5
    respacing: str = "ddim500"
    start: int = 300


@dataclass(frozen=True)
class InferenceConfig:
    """The recipe of a picture.

    Attributes:
        rounds: the rounds in order (the paper's table).
        color_transfer: the method before each round but the first: "reinhard" (the paper's), "histogram" or
            "transport".
        final_color_transfer: the method for the picture after the last round ("": none, the paper's).
        final_color_share: how much of the final transfer is applied, 0 to 1.
        color_by_class: whether all transfers go from class to class, the sky from the style's sky.
        sampler: "ddim" (the paper's) visits each index of a round's chain; "dpmpp" is DPM-Solver++(2M).
        steps: how many timesteps "dpmpp" visits in each round; "ddim" does not read it.
        guidance_rescale: how far the std of guided predictions is moved to that of conditional ones, 0 to 1 (phi of
            Lin et al. 2023, section 3.4).
        guidance_from, guidance_to: guidance at timesteps from the one to below the other (0: to the last one;
            Kynkäänniemi et al. 2024).
    """

    rounds: tuple[RoundConfig, ...] = (
        RoundConfig(3.5, "ddim500", 300),
        RoundConfig(3.7, "ddim500", 320),
        RoundConfig(3.7, "ddim50", 20),
    )
    color_transfer: ColorTransfer = "reinhard"
    final_color_transfer: Literal[ColorTransfer, ""] = ""
    final_color_share: Fraction = 1.0
    color_by_class: bool = False
    sampler: Literal["ddim", "dpmpp"] = "ddim"
    steps: Positive = 20
    guidance_rescale: Fraction = 0.0
    guidance_from: int = 0
    guidance_to: int = 0


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
        discriminator_weight: factor of the adaptive weight (Esser et al. 2021, eq. 6).
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


@dataclass(frozen=True)
class DecoderTrainingConfig(TrainingConfig):
    """Training of the decoder alone, on random crops; the discriminator looks at EfficientNet-Lite0's features.

    Attributes:
        crop: side of the square crops, in pixels.
        scale: photos are enlarged by a random factor of up to this before the crop.
        perceptual_weight: weight of the distance of EfficientNet-Lite0's features.
        discriminator_start: the discriminator learns from this step on.
        discriminator_ramp: steps over which its weight in the loss grows to full.
        discriminator_weight: that weight.
        discriminator_channels: its width, a multiple of 8.
    """

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


@dataclass(frozen=True)
class UNetTrainingConfig(TrainingConfig):
    """Training of the UNet on latents; `loss_limit` watches the squared error.

    Attributes:
        weight_decay: AdamW's.
        mask_drop: probability that a sample's label map is left out, for classifier-free guidance.
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
    keep_at: tuple[Positive, ...] = (176_000, 266_000)
    checkpoint_blocks: bool = False
    views: Positive = 1
    scale: Enlargement = 1.0
    encode_on_the_fly: bool = False
    precision: Precision = "fp32"
    by_hand_weight: Weight = 1.0


@dataclass(frozen=True)
class Config:
    """Everything that defines a model and the run that made it."""

    image: ImageConfig = field(default_factory=ImageConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    train_autoencoder: AutoencoderTrainingConfig = field(default_factory=AutoencoderTrainingConfig)
    train_decoder: DecoderTrainingConfig = field(default_factory=DecoderTrainingConfig)
    train_unet: UNetTrainingConfig = field(default_factory=UNetTrainingConfig)
    seed: int = 0


def load_config(path, kind=Config):
    """Reads a `Config`, or another dataclass of sections, from a YAML file.

    Raises:
        InputError: what is wrong, with the file and the key.
    """
    return from_dict(kind, _read_yaml(path), str(path))


def load_recipe(path: str | Path) -> dict:
    """Reads keys of a recipe from a YAML file; raises InputError for a key or a type that is none of a recipe's."""
    keys = _read_yaml(path)
    from_dict(InferenceConfig, keys, str(path))
    return keys


def with_recipe(config: Config, recipe: InferenceConfig | dict | str | Path | None) -> Config:
    """The configuration with another recipe.

    Args:
        config: the whole configuration.
        recipe: an `InferenceConfig`, or a dict or the path of a YAML file; keys that are absent keep their value.

    Raises:
        InputError: a key or a value that is none, or steps for a sampler that does not read them.
    """
    if recipe is None:
        return config
    if isinstance(recipe, InferenceConfig):
        check_recipe(recipe, config.diffusion.timesteps, "recipe: ")
        return dataclasses.replace(config, inference=recipe)
    if not isinstance(recipe, dict | str | Path):
        raise InputError(f"recipe {recipe!r}: expected an InferenceConfig, a dict or the path of a YAML file")
    where, keys = ("recipe", recipe) if isinstance(recipe, dict) else (str(recipe), load_recipe(recipe))
    from_dict(InferenceConfig, keys, where)
    chosen = from_dict(InferenceConfig, {**to_dict(config.inference), **keys}, where)
    check_recipe(chosen, config.diffusion.timesteps, f"{where}: ")
    if chosen.sampler == "ddim" and chosen.steps != config.inference.steps:
        raise InputError(
            f"{where}: steps {chosen.steps}: DDIM takes the steps that each round's start index says; leave steps out, "
            'or choose the sampler "dpmpp"'
        )
    return dataclasses.replace(config, inference=chosen)


def _read_yaml(path):
    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from error
    return {} if data is None else data


def check_config(config: Config) -> None:
    """Raises InputError where the sections of a `Config` contradict each other or hold a value that is none."""
    image, autoencoder, unet = config.image, config.autoencoder, config.unet
    if not autoencoder.ch_mult or not unet.channel_mult:
        raise InputError("autoencoder.ch_mult and unet.channel_mult: expected one number a level, at least one")
    for name, side in (("width", image.width), ("height", image.height)):
        if side < 1 or side % autoencoder.factor:
            raise InputError(
                f"image.{name} {side}: expected a multiple of {autoencoder.factor}, the autoencoder's factor"
            )
    if autoencoder.embed_dim != unet.in_channels:
        raise InputError(
            f"unet.in_channels {unet.in_channels}: expected {autoencoder.embed_dim}, which is autoencoder.embed_dim"
        )
    _check_diffusion(config.diffusion)
    check_recipe(config.inference, config.diffusion.timesteps, "inference.")


def _check_diffusion(diffusion):
    check_values(diffusion, "diffusion.")
    if diffusion.zero_terminal_snr and diffusion.prediction != "v":
        raise InputError(
            f'diffusion.prediction {diffusion.prediction!r}: expected "v" with zero_terminal_snr: at the last step '
            "the latents are all noise, and epsilon says nothing of the picture"
        )
    if diffusion.loss_weight == "min_snr" and not diffusion.min_snr_gamma:
        raise InputError("diffusion.min_snr_gamma 0: expected more than 0, such as 5; all weights would be 0")


def check_recipe(recipe: InferenceConfig, timesteps: int, where: str = "recipe: ") -> None:
    """Raises InputError, which begins with `where`, for a value that means nothing in a schedule of `timesteps`."""
    check_values(recipe, where)
    if not recipe.guidance_from < (recipe.guidance_to or timesteps) <= timesteps:
        raise InputError(
            f"{where}guidance_from {recipe.guidance_from}, guidance_to {recipe.guidance_to}: expected timesteps out of "
            f"{timesteps}, from below to (to 0: all the rest)"
        )


def check_training(config):
    """Raises InputError where the training sections of a `Config` contradict each other or its networks."""
    check_training_section(config, "train_autoencoder")
    check_training_section(config, "train_unet")
    _check_autoencoder_training(config)
    _check_unet_training(config.train_unet)


def check_training_section(config, name):
    """Raises InputError where a value of the `TrainingConfig` called `name`, or the seed, is out of its range."""
    training = getattr(config, name)
    check_values(training, f"{name}.")
    if training.learning_rate <= 0:
        raise InputError(f"{name}.learning_rate {training.learning_rate:g}: expected more than 0")
    if 0 < training.loss_limit <= 1:
        raise InputError(f"{name}.loss_limit {training.loss_limit:g}: expected more than 1 times the median, or 0 for "
                         f"no limit")
    if config.seed >= 2**32:
        raise InputError(f"seed {config.seed}: expected less than 2**32")


def check_decoder_training(config):
    """Raises InputError where the section train_decoder of a `Config` cannot be trained."""
    check_training_section(config, "train_decoder")
    _check_crop(config, "train_decoder")
    if config.train_decoder.discriminator_channels % 8:
        raise InputError(f"train_decoder.discriminator_channels {config.train_decoder.discriminator_channels}: "
                         f"expected a multiple of 8")


def _check_crop(config, name):
    crop, factor = getattr(config, name).crop, config.autoencoder.factor
    if crop > min(config.image.width, config.image.height) or crop % factor:
        raise InputError(f"{name}.crop {crop}: expected a multiple of {factor}, at most the smaller side of the "
                         f"picture of {config.image.width}x{config.image.height}")


def _check_autoencoder_training(config):
    training = config.train_autoencoder
    crop, layers = training.crop, training.discriminator_layers
    _check_crop(config, "train_autoencoder")
    if training.perceptual_weight and (len(training.perceptual_files) != 2 or crop < 16):
        raise InputError(
            f"train_autoencoder.perceptual_files {list(training.perceptual_files)}: expected two files, the weights of "
            f"VGG-16 and of LPIPS, and a crop of at least 16"
        )
    if training.quantize_from >= training.steps:
        raise InputError(f"train_autoencoder.quantize_from {training.quantize_from}: expected less than the "
                         f"{training.steps} steps")
    if training.discriminator_channels % 4:
        raise InputError(f"train_autoencoder.discriminator_channels {training.discriminator_channels}: expected a "
                         f"multiple of 4")
    if training.discriminator_start < training.steps and crop < 3 * 2**layers:
        raise InputError(
            f"train_autoencoder.crop {crop}: a discriminator of {layers} layers sees no patch of it; expected at "
            f"least {3 * 2**layers}, or fewer discriminator_layers"
        )
    if len(training.anchors) > config.autoencoder.embed_dim:
        raise InputError(f"train_autoencoder.anchors {list(training.anchors)}: expected at most "
                         f"{config.autoencoder.embed_dim}, one a latent channel")


def _check_unet_training(training):
    if training.encode_on_the_fly and training.views > 1:
        raise InputError(f"train_unet.views {training.views}: is for the store; expected 1 with encode_on_the_fly")
    if not training.encode_on_the_fly and (training.scale > 1) != (training.views > 1):
        raise InputError(
            f"train_unet.scale {training.scale:g}, views {training.views}: expected both above 1 (the further views of "
            f"a photo in the store are the enlarged ones), or neither"
        )
    if not training.keep_at or max(training.keep_at) != training.steps:
        raise InputError(
            f"train_unet.keep_at {list(training.keep_at)}: expected steps, the last being train_unet.steps, "
            f"{training.steps}"
        )


def builtin_config(name):
    """Path of a configuration that comes with the package: "default", "paper", "segmenter", "gaugan" or "clade"."""
    path = Path(__file__).parent / "configs" / f"{name}.yaml"
    return path if path.exists() else Path(__file__).parent.parent / "configs" / f"{name}.yaml"


def config_path(text):
    """Path of what a --config names: a YAML file, or one of the `builtin_config`s."""
    return text if text.endswith((".yaml", ".yml")) else builtin_config(text)


def to_dict(config: Any) -> Any:
    """The dataclass `config` as nested dicts and lists that YAML and JSON can hold."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return [to_dict(item) for item in config] if isinstance(config, tuple) else config


def from_dict(cls: type[_T], data: Any, where: str) -> _T:
    """Builds the dataclass `cls` from nested dicts.

    Args:
        cls: the dataclass.
        data: the values by name; absent ones get their default.
        where: what errors call the source.

    Raises:
        InputError: an unknown key, a value of the wrong type, or a number out of its range.
    """
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected keys and values for {cls.__name__}, found {data!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    for key in data:
        if key not in hints:
            raise InputError(f"{where}: unknown key {key!r}; known here: {', '.join(hints)}")
    return cls(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in data.items()})


def check_values(section: Any, where: str) -> None:
    """Raises InputError, which begins with `where`, for a field of a dataclass that its type does not allow."""
    for name, kind in typing.get_type_hints(type(section), include_extras=True).items():
        _convert(kind, to_dict(getattr(section, name)), f"{where}{name}")


def drop_retired(config: Any) -> Any:
    """The configuration of a checkpoint, as JSON gave it, without keys that are no longer known and meant nothing."""
    if isinstance(config, dict):
        for (section, key), value in RETIRED.items():
            found = config.get(section)
            if isinstance(found, dict) and found.get(key) == value:
                del found[key]
    return config


def _convert(kind, value, where):
    """The value as `kind`, a type of a dataclass's field; `where` names the field."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)
    origin, bounds = typing.get_origin(kind), None
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InputError(f"{where}: expected a list, found {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is Literal:
        if type(value) is not str:
            raise InputError(f"{where}: expected str, found {value!r}")
        words = [word for word in typing.get_args(kind) if word]
        if value not in typing.get_args(kind):
            raise InputError(f"{where} {value!r}: expected one of {', '.join(words)}")
        return value
    if origin is Annotated:
        kind, bounds = typing.get_args(kind)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, str) and re.fullmatch(r"\d+e[+-]?\d+", value):
        value = float(value)  # YAML 1.1 wants a point before the exponent and takes 1e-4 for text
    if type(value) is not kind:
        raise InputError(f"{where}: expected {kind.__name__}, found {value!r}")
    if bounds is not None and not (bounds.least <= value and (bounds.most is None or value <= bounds.most)):
        raise InputError(f"{where} {value:g}: expected {bounds}")
    if kind in (int, float) and not value >= 0:
        raise InputError(f"{where}: expected a number of at least 0, found {value!r}")
    return value
