"""Makes docs/panorama.jpg and docs/larger.jpg of the default weights.

    python docs/gallery.py
"""
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm import Generator
from jiidm.data.labels import colorize, read_label_map
from jiidm.data.pictures import sheet_of

DOCS = Path(__file__).parent
EXAMPLES = DOCS.parent / "examples"
generator = Generator.from_checkpoint("default")

labels = read_label_map(DOCS / "panorama-map.png")
panorama = generator.infer(labels, EXAMPLES / "train/imgs/evening_glow.jpg", size="mask", names=["panorama"],
                           recipe={"canvas": [1024, 256]})
Image.fromarray(np.concatenate([colorize(labels), np.asarray(panorama)])).save(DOCS / "panorama.jpg", quality=88)

pairs = {"mountain_lake": "summer_night", "waterfall": "forest_path"}
masks = [EXAMPLES / f"test/labels/{name}.png" for name in pairs]
styles = [EXAMPLES / f"train/imgs/{name}.jpg" for name in pairs.values()]
own = generator.config.inference.rounds
growing = [*(vars(each) for each in own), {**vars(own[-1]), "scale": 2.0, "start": 15}]
enlarged = generator.infer(masks, styles, size=(512, 384), names=list(pairs))
drawn = generator.infer(masks, styles, size=(512, 384), names=list(pairs), recipe={"rounds": growing})
rows = [[np.asarray(picture) for picture in row] for row in (enlarged, drawn)]
Image.fromarray(sheet_of(rows, ["256x192, enlarged to 512x384", "one more round at 512x384"])).save(
    DOCS / "larger.jpg", quality=88)
