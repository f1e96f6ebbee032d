"""Makes docs/unpainted.jpg: one label map whole, with a hole, and hardly painted, and what becomes of it.

    python docs/unpainted.py
"""
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm import Generator
from jiidm.data.labels import NO_CLASS, colorize, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo, sheet_of

ROOT = Path(__file__).parent.parent
generator = Generator.from_checkpoint("default")
size = generator.width, generator.height
whole = resize_labels(read_label_map(ROOT / "examples/test/labels/mountain_lake.png"), *size)
style = fit_photo(read_photo(ROOT / "examples/train/imgs/evening_glow.jpg"), *size)
hole, little = whole.copy(), np.full_like(whole, NO_CLASS)
hole[size[1] // 4: 3 * size[1] // 4, size[0] // 3: 2 * size[0] // 3] = NO_CLASS
little[: size[1] // 3] = whole[0, 0]
maps = [whole, hole, little]
pictures = generator.infer(maps, [style] * 3, names=["", "", ""])
sheet = sheet_of([[colorize(labels) for labels in maps], [np.asarray(picture) for picture in pictures]],
                 ["label map, black: no class", "picture"])
Image.fromarray(sheet).save(Path(__file__).parent / "unpainted.jpg", quality=88)
