"""What a network, a run and a recipe are made of: frozen dataclasses whose defaults are the paper's.

A configuration is data. It comes from a YAML file in `configs/` (any section or key may be left out) or from the
metadata of a checkpoint. `from_dict` checks it and names the key that is wrong. The trainings' sections are in
`jiidm.config.training`.
"""
import dataclasses
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from jiidm.config.training import (
    COLOR_AXES,
    AutoencoderTrainingConfig,
    DecoderTrainingConfig,
    TrainingConfig,
    UNetTrainingConfig,
    check_training,
)
from jiidm.config.values import (
    ClassCount,
    Enlargement,
    Fraction,
    Positive,
    Range,
    check_values,
    from_dict,
    read_yaml,
    to_dict,
)
from jiidm.system.errors import InputError

__all__ = [  # those of the two files, too
    "COLOR_AXES", "COLOR_TRANSFERS", "AutoencoderConfig", "AutoencoderTrainingConfig", "ColorTransfer", "Config",
    "DecoderTrainingConfig", "DiffusionConfig", "Enlargement", "Fraction", "ImageConfig", "InferenceConfig", "Positive",
    "Range", "RoundConfig", "TrainingConfig", "UNetConfig", "UNetTrainingConfig", "builtin_config", "check_config",
    "check_recipe", "check_training", "check_values", "config_path", "drop_retired", "from_dict", "load_config",
    "load_recipe", "read_yaml", "to_dict", "with_recipe",
]

ColorTransfer = Literal["reinhard", "histogram", "transport"]
COLOR_TRANSFERS = typing.get_args(ColorTransfer)
# keys of older checkpoints, with the value that means nothing
RETIRED = {("inference", "class_noise"): 0.0, ("inference", "guidance_from"): 0, ("inference", "guidance_to"): 0}


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
        scale: side lengths of the round's picture, times those of the recipe's canvas. No round may shrink the picture.
    """

    guidance: float = 3.5
    respacing: str = "ddim500"
    start: int = 300
    scale: Annotated[float, Range(1, 8)] = 1.0


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
        canvas: width and height in pixels that the rounds work at; (): the network's. A side of more than twice the
            network's is computed in windows.
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
    canvas: tuple[Positive, ...] = ()


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
    return from_dict(kind, read_yaml(path), str(path))


def load_recipe(path: str | Path) -> dict:
    """Reads keys of a recipe from a YAML file; raises InputError for a key or a type that is none of a recipe's."""
    keys = read_yaml(path)
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
        check_recipe(recipe, "recipe: ")
        return dataclasses.replace(config, inference=recipe)
    if not isinstance(recipe, dict | str | Path):
        raise InputError(f"recipe {recipe!r}: expected an InferenceConfig, a dict or the path of a YAML file")
    where, keys = ("recipe", recipe) if isinstance(recipe, dict) else (str(recipe), load_recipe(recipe))
    from_dict(InferenceConfig, keys, where)
    chosen = from_dict(InferenceConfig, {**to_dict(config.inference), **keys}, where)
    check_recipe(chosen, f"{where}: ")
    if chosen.sampler == "ddim" and chosen.steps != config.inference.steps:
        raise InputError(
            f"{where}: steps {chosen.steps}: DDIM takes the steps that each round's start index says; leave steps out, "
            'or choose the sampler "dpmpp"'
        )
    return dataclasses.replace(config, inference=chosen)


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
    check_recipe(config.inference, "inference.")


def _check_diffusion(diffusion):
    check_values(diffusion, "diffusion.")
    if diffusion.zero_terminal_snr and diffusion.prediction != "v":
        raise InputError(
            f'diffusion.prediction {diffusion.prediction!r}: expected "v" with zero_terminal_snr: at the last step '
            "the latents are all noise, and epsilon says nothing of the picture"
        )
    if diffusion.loss_weight == "min_snr" and not diffusion.min_snr_gamma:
        raise InputError("diffusion.min_snr_gamma 0: expected more than 0, such as 5; all weights would be 0")


def check_recipe(recipe: InferenceConfig, where: str = "recipe: ") -> None:
    """Raises InputError, which begins with `where`, for a value that a recipe cannot have."""
    check_values(recipe, where)
    if len(recipe.canvas) not in (0, 2):
        raise InputError(f"{where}canvas {list(recipe.canvas)}: expected a width and a height in pixels")


def builtin_config(name):
    """Path of a configuration that comes with the package, such as "default" or "paper": a file of `configs/`."""
    package = Path(__file__).parent.parent
    path = package / "configs" / f"{name}.yaml"
    return path if path.exists() else package.parent / "configs" / f"{name}.yaml"


def config_path(text):
    """Path of what a --config names: a YAML file, or one of the `builtin_config`s."""
    return text if text.endswith((".yaml", ".yml")) else builtin_config(text)


def drop_retired(config: Any) -> Any:
    """The configuration of a checkpoint, as JSON gave it, without keys that are no longer known and meant nothing."""
    if isinstance(config, dict):
        for (section, key), value in RETIRED.items():
            found = config.get(section)
            if isinstance(found, dict) and found.get(key) == value:
                del found[key]
    return config
