"""Makes docs/progress.jpg: three label maps and styles, with default weights of earlier versions and of this one.

    for commit in 7cfd74a dce144d; do
        mkdir -p earlier/$commit
        git archive $commit jiidm/weights/default | tar -x -C earlier/$commit --strip-components=3
    done
    python docs/progress.py earlier/7cfd74a earlier/dce144d
"""
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm import Generator
from jiidm.data.labels import colorize, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo, resize_photo, sheet_of

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
SIZE = 256, 192
PAIRS = {"mountain_lake": "evening_glow", "waterfall": "forest_path", "forest_shore": "autumn"}
masks = [EXAMPLES / f"test/labels/{name}.png" for name in PAIRS]
styles = [EXAMPLES / f"train/imgs/{name}.jpg" for name in PAIRS.values()]
rows = [[colorize(resize_labels(read_label_map(mask), *SIZE)) for mask in masks],
        [fit_photo(read_photo(style), *SIZE) for style in styles]]
for weights in (*sys.argv[1:], "default"):
    pictures = Generator.from_checkpoint(weights).infer(masks, styles, names=list(PAIRS))
    rows.append([resize_photo(np.asarray(picture), *SIZE) for picture in pictures])
titles = ["label map", "style photo", "earlier weights (192x144)", "16,000 samples at 256x192", "now"]
Image.fromarray(sheet_of(rows, titles)).save(DOCS / "progress.jpg", quality=88)
