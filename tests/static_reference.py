"""Tiny networks and their pictures by Python, for the tests of the static page; no process has Jittor and playwright.

    python static_reference.py FOLDER      writes FOLDER/weights/*.safetensors and FOLDER/pictures.npz
"""
import dataclasses
import sys
from pathlib import Path

import numpy as np
from helpers import ROOT, TINY, write_random_weights

from jiidm.config import InferenceConfig, RoundConfig
from jiidm.data.labels import CLASSES
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.data.project import Settings

PHOTOS = ROOT / "examples" / "train" / "imgs"
SEGMENTED = "dune_grass"
RECIPE = InferenceConfig(rounds=(RoundConfig(2.0, "ddim50", 8), RoundConfig(1.5, "ddim50", 4)),
                         color_transfer="transport", final_color_transfer="transport", final_color_share=0.4)
CASES = {  # a style and settings
    "full": ("storm", {"seed": 0, "size": "mask"}),
    "strength": ("evening_glow", {"seed": 2**32 - 1, "strength": 0.3, "size": "mask"}),
    "preview": ("autumn", {"seed": 5, "quality": "preview"}),
    "own": (SEGMENTED, {"seed": 1, "quality": "preview"}),
}


def drawing():
    """A label map of three classes, 96x72."""
    labels = np.full((72, 96), CLASSES.index("sky"), np.uint8)
    labels[36:] = CLASSES.index("grass")
    labels[15:45, 30:60] = CLASSES.index("tree")
    return labels


def main(folder):
    """Writes the weights and the pictures."""
    from jiidm.evaluation.segment import open_segmenter
    from jiidm.painter.engine import Engine

    write_random_weights(folder / "weights", dataclasses.replace(TINY, inference=RECIPE), [1])
    engine = Engine(str(folder / "weights"), "cpu")
    pictures = {}
    for name, (style, settings) in CASES.items():
        photo, events = fit_photo(read_photo(PHOTOS / f"{style}.jpg"), TINY.image.width, TINY.image.height), []
        engine.paint(drawing(), photo, None, Settings(**settings), events.append)
        pictures[name] = events[-1]["picture"]
        pictures[f"{name} steps"] = max(event["done"] for event in events if event["event"] == "progress")
    canvas = engine.describe()["canvas"]
    photo = fit_photo(read_photo(PHOTOS / f"{SEGMENTED}.jpg"), canvas["width"], canvas["height"])
    segmented = open_segmenter("small").segment(photo, (canvas["height"], canvas["width"])).labels  # the exported one
    np.savez(folder / "pictures.npz", segmented=segmented, **pictures)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
