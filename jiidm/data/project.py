"""Projects: a label map, its style and the settings of its picture in one JSON file.

    {"map": "<base64 of a label PNG>",
     "style": "evening_glow" or "<base64 of a photo>",
     "settings": {"seed": 3, "strength": 0.6, ...},
     "style_map": "<base64 of a label PNG>"}        (may be absent)

The painter saves and opens such files, and its server takes one as the body of POST /api/picture.
"""
import base64
import binascii
import json
from dataclasses import dataclass, field, fields

from jiidm.system.errors import InputError

QUALITIES = ("preview", "full")
SIZES = ("model", "mask")


@dataclass(frozen=True)
class Settings:
    """How the picture of a project is made.

    seed: of the noise, 0 to 2**32 - 1. quality: "preview" (one round of few steps) or "full" (the whole recipe).
    strength: 0 (the style photo) to 1 (noise alone), where the first round starts; None takes the recipe's start.
    size: "model", or "mask" for the label map's own size. color_by_class: whether colours go from class to class, the
    sky from the style's sky; None does as the recipe.
    """

    seed: int = 0
    quality: str = "full"
    strength: float | None = None
    size: str = "model"
    color_by_class: bool | None = None

    def __post_init__(self):
        if type(self.seed) is not int or not 0 <= self.seed < 2**32:
            raise InputError(f"settings.seed {self.seed!r}: expected a whole number from 0 to {2**32 - 1}")
        if self.quality not in QUALITIES:
            raise InputError(f"settings.quality {self.quality!r}: expected one of {', '.join(QUALITIES)}")
        strength = self.strength
        if strength is not None and (type(strength) not in (int, float) or not 0 <= strength <= 1):
            raise InputError(f"settings.strength {strength!r}: expected a number from 0 to 1, or null")
        if self.size not in SIZES:
            raise InputError(f"settings.size {self.size!r}: expected one of {', '.join(SIZES)}")
        if self.color_by_class not in (None, True, False) or type(self.color_by_class) is int:
            raise InputError(f"settings.color_by_class {self.color_by_class!r}: expected true, false or null")


@dataclass(frozen=True)
class Project:
    """`map` is the bytes of a label PNG, `style` the bytes of a photo or the name of an example style.

    `style_map` is the bytes of the style photo's label PNG, or None.
    """

    map: bytes
    style: bytes | str
    settings: Settings = field(default_factory=Settings)
    style_map: bytes | None = None


def settings_from_dict(values):
    """The `Settings` of a dict; raises InputError for a key or a value that is none."""
    if not isinstance(values, dict):
        raise InputError(f"settings: a value of type {type(values).__name__}; expected an object")
    known = [f.name for f in fields(Settings)]
    for key in values:
        if key not in known:
            raise InputError(f"settings.{key}: no such key; expected {', '.join(known)}")
    return Settings(**values)


def parse_project(data, style_names=()):
    """Reads a project.

    Args:
        data: the bytes of the JSON file. Keys other than map, style, settings and style_map are the painter's own and
            not read.
        style_names: the names that `style` may have; any other text is taken as the base64 of a photo.

    Returns:
        The `Project`; the pictures in it are not decoded.

    Raises:
        InputError: not JSON, a key is missing, a value is of the wrong kind, or a picture is no base64.
    """
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"project: not JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise InputError(f"project: a value of type {type(values).__name__}; expected an object")
    for key in ("map", "style"):
        if not isinstance(values.get(key), str):
            raise InputError(f"project.{key}: expected a text, {_EXPECTED[key]}")
    style = values["style"]
    if style not in style_names:
        if len(style) < 64:  # no photo is that small, so it was meant as a name
            raise InputError(f"project.style {style[:64]!r}: no such style; expected {_EXPECTED['style']}; "
                             f"the styles are {', '.join(style_names) or 'none'}")
        style = _bytes(style, "style")
    style_map = values.get("style_map")
    if style_map is not None and not isinstance(style_map, str):
        raise InputError(f"project.style_map: expected a text, {_EXPECTED['style_map']}, or null")
    return Project(_bytes(values["map"], "map"), style, settings_from_dict(values.get("settings", {})),
                   style_map and _bytes(style_map, "style_map"))


_EXPECTED = {"map": "the base64 of a label PNG", "style": "the name of a style or the base64 of a photo",
             "style_map": "the base64 of the style photo's label PNG"}


def _bytes(text, key):
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"project.{key}: not base64 ({error}); expected {_EXPECTED[key]}") from error
