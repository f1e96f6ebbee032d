"""The judge: a segmenter on frozen ImageNet features (EfficientNet-Lite 2), of which only a small head is trained.

A network that knows textures tells a photo of water from a patch of water's colour. The head is a feature pyramid
(Lin et al. 2017): scales from coarse to fine, each brought to one width, enlarged and added to the next finer one.
"""
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jiidm.checkpoint import FORMAT, load_into, load_tensors, save_tensors, source_of
from jiidm.config import from_dict, to_dict
from jiidm.data.labels import CLASSES, NEAR_CLASSES
from jiidm.data.pictures import from_pixels, resize_photo
from jiidm.evaluation.class_maps import class_map
from jiidm.evaluation.segformer import resize_bilinear
from jiidm.foreign.efficientnet import load_efficientnet
from jiidm.models.efficientnet import STAGES, VARIANTS, channels_of
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, nn

KIND = "judge"
DEFAULT_JUDGE = Path(__file__).parent.parent / "weights" / "judge" / "judge.safetensors"
BATCH = 8
# What the judge predicts where it recognises nothing. Without that choice it names the likeliest class of any patch of
# the right colour in the right place.
NOTHING = len(CLASSES)
_NAMES = (*CLASSES, "nothing")


@dataclass(frozen=True)
class JudgeConfig:
    """The head, and the pictures that it sees.

    Attributes:
        variant: "lite0", "lite1" or "lite2", the frozen network.
        taps: the stages whose outputs the head takes, fine to coarse; see `EfficientNetLite.features`.
        width: channels of the head.
        picture_width, picture_height: pictures are resized to this size, in pixels.
    """

    variant: str = "lite2"
    taps: tuple[int, ...] = (2, 3, 5, 7)
    width: int = 96
    picture_width: int = 256
    picture_height: int = 192


def check_judge(config):
    """Raises InputError where a `JudgeConfig` cannot be."""
    if config.variant not in VARIANTS:
        raise InputError(f"judge.variant {config.variant!r}: expected one of {', '.join(VARIANTS)}")
    taps = config.taps
    if not taps or list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] <= STAGES:
        raise InputError(f"judge.taps {taps}: expected numbers of stages 0..{STAGES} in ascending order")
    if config.width < 1 or min(config.picture_width, config.picture_height) < 32:
        raise InputError("judge: expected a width of 1 or more, and pictures of 32 pixels a side or more")


def near_class_table():
    """Returns 30 uint8: for each class the first class of its group in `NEAR_CLASSES`, else itself; so `NOTHING`."""
    table = np.arange(NOTHING + 1, dtype=np.uint8)
    for group in NEAR_CLASSES:
        table[[CLASSES.index(name) for name in group]] = CLASSES.index(group[0])
    return table


def merge_near_classes(matrix):
    """Returns the confusion matrices (... x 30 x 30) with near classes counted as one."""
    merge = np.zeros((NOTHING + 1, NOTHING + 1), matrix.dtype)
    merge[np.arange(NOTHING + 1), near_class_table()] = 1
    return merge.T @ matrix @ merge


class JudgeHead(nn.Module):
    """Features of several scales -> N, classes, h, w logits at the size of the finest."""

    def __init__(self, config, num_classes):
        channels = channels_of(config.variant)
        self.lateral = nn.ModuleList([nn.Conv(channels[tap], config.width, 1) for tap in config.taps])
        # at the finest scale, of most positions, 1x1 in place of 3x3
        sizes = (1, *(3 for _ in config.taps[1:]))
        self.smooth = nn.ModuleList([nn.Conv(config.width, config.width, size, padding=size // 2) for size in sizes])
        self.classifier = nn.Conv(config.width, num_classes, 1)

    def execute(self, features):
        x = None
        for feature, lateral, smooth in reversed(list(zip(features, self.lateral, self.smooth, strict=True))):
            scale = lateral(feature)
            if x is not None:
                scale = scale + resize_bilinear(x, *scale.shape[2:])
            x = nn.relu(smooth(nn.relu(scale)))
        return self.classifier(x)


class Judge:
    """A trained head on its frozen network, ready to judge."""

    def __init__(self, config, classes, head, file="", sha256=""):
        """Puts the parts together.

        Args:
            config: the `JudgeConfig`.
            classes: numbers of the classes that it can predict, in the order of the head's outputs; `NOTHING` is one.
            head: the `JudgeHead`.
            file, sha256: name and SHA-256 of the head's file, for reports.
        """
        self.config, self.classes, self.head, self.file, self.sha256 = config, tuple(classes), head, file, sha256
        self.network = load_efficientnet(config.variant)

    def judge(self, pictures, sizes=None):
        """Predicts label maps and takes the features for KID, in one pass.

        Args:
            pictures: list of H x W x 3 uint8 RGB; each is resized whole to the config's size.
            sizes: (height, width) of each label map; None takes the pictures' own.

        Returns:
            A list of H x W uint8 label maps, `NOTHING` where nothing is recognised, and N x 1280 float32 features.
        """
        sizes = sizes or [picture.shape[:2] for picture in pictures]
        labels, pooled = [], []
        for start in range(0, len(pictures), BATCH):
            logits, means = self.logits(pictures[start:start + BATCH])
            pooled.append(means)
            labels += [class_map(values, size, self.classes)[0]
                       for values, size in zip(logits, sizes[start:start + BATCH], strict=True)]
        return labels, np.concatenate(pooled)

    def logits(self, pictures):
        """Returns the head's logits, N, outputs, h, w, and the features for KID, N x 1280, of at most `BATCH` pictures
        as for `judge`."""
        size = self.config.picture_width, self.config.picture_height
        some = np.stack([resize_photo(picture, *size) for picture in pictures])
        with jt.no_grad():
            *features, top = self.network.features(jt.array(from_pixels(some)), (*self.config.taps, STAGES + 1))
            return self.head(features).numpy(), top.mean((2, 3)).numpy()


def save_judge(path, arrays, config, classes, note=""):
    """Writes a judge's head as safetensors in float16.

    Args:
        path: the file; it appears whole or not at all.
        arrays: the parameters of the `JudgeHead`, by name.
        config: the `JudgeConfig`.
        classes: numbers of the classes that it can predict; see `Judge`.
        note: how it was made, in words.

    Raises:
        InputError: NaN or a number beyond float16's range, or the file cannot be written.
    """
    save_tensors(path, arrays, {
        "format": FORMAT, "kind": KIND, "config": json.dumps(to_dict(config)),
        "classes": json.dumps([_NAMES[c] for c in classes]), "note": note,
    }, "float16", finite=True)


def load_judge(path=None):
    """Reads a `Judge`.

    Args:
        path: file of `save_judge`; None takes the package's own.

    Raises:
        InputError: the file is missing, damaged or no judge's, or the ImageNet weights are not installed.
    """
    path = Path(path or DEFAULT_JUDGE)
    arrays, metadata = load_tensors(path)
    if metadata.get("kind") != KIND:
        raise InputError(f"{path}: kind {metadata.get('kind')!r}, expected {KIND!r}: a file that the judge's training "
                         f"wrote")
    try:
        config = from_dict(JudgeConfig, json.loads(metadata["config"]), str(path))
        classes = [_NAMES.index(name) for name in json.loads(metadata["classes"])]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: its metadata cannot be used ({error}); copy it again") from error
    check_judge(config)
    head = JudgeHead(config, len(classes))
    load_into(head, arrays, path)
    for parameter in head.parameters():
        parameter.stop_grad()
    return Judge(config, classes, head, path.name, source_of(path).sha256)
