"""The store of latents that the UNet is trained on."""
import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jiidm.data.loader import Loader
from jiidm.data.views import load_pairs, whole_view
from jiidm.files import InputError, output_folder, written_whole
from jiidm.labels import NO_CLASS
from jiidm.pictures import from_pixels
from jiidm.runtime import jt

_BATCH = 8


class LatentStore:
    """Latents (2N, C, h, w float32) and label maps (2N, h, w uint8) on disk, memory-mapped.

    Every photo is followed by its mirror image. A label map has the latent's size, reduced as the UNet would do it.
    """

    def __init__(self, path):
        path = Path(path)
        try:
            self.latents = np.load(path / "latents.npy", mmap_mode="r")
            self.labels = np.load(path / "labels.npy", mmap_mode="r")
            self.about = json.loads((path / "latents.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: no readable store of latents ({error}); make it with tools/train.py latents"
            ) from error

    def __len__(self):
        return len(self.latents)


def description(network, folder, config):
    """What a store of latents depends on: the autoencoder's weights, the pictures' size, the data folder's files."""
    weights = hashlib.sha256(b"".join(p.numpy().tobytes() for p in network.parameters())).hexdigest()
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for n in folder.names for p in folder.paths(n)]
    return {
        "autoencoder": weights, "width": config.image.width, "height": config.image.height, "photos": len(folder),
        "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
    }


def write_latents(path, network, folder, config):
    """Encodes every photo of a `TrainingFolder`, and its mirror image, with the autoencoder `network`.

    Pictures have the size and labels the classes of `config`. Writes `latents.npy`, `labels.npy` and, last,
    `latents.json` into the folder `path`; returns the `LatentStore`.
    """
    path, image, factor = output_folder(path), config.image, config.autoencoder.factor
    (path / "latents.json").unlink(missing_ok=True)
    count, height, width = 2 * len(folder), image.height // factor, image.width // factor
    channels = network.quantize.embedding.weight.shape[1]
    starts, view = range(0, len(folder), _BATCH), whole_view(image.width, image.height)

    def pairs_of(number):
        names = folder.names[starts[number] : starts[number] + _BATCH]
        return load_pairs(folder, names, [view] * len(names), config.unet.num_classes)

    with written_whole(path / "latents.npy") as latents_path, written_whole(path / "labels.npy") as labels_path, \
            Loader(pairs_of, 0, len(starts)) as pairs:
        latents = np.lib.format.open_memmap(latents_path, "w+", np.float32, (count, channels, height, width))
        labels = np.lib.format.open_memmap(labels_path, "w+", np.uint8, (count, height, width))
        bar = tqdm(starts, "latents", unit="batch", dynamic_ncols=True)
        for first, (photos, masks) in zip(bar, pairs, strict=True):
            for i, mirror in enumerate((slice(None), slice(None, None, -1))):
                rows = slice(2 * first + i, 2 * (first + len(photos)), 2)
                with jt.no_grad():
                    latents[rows] = network.encode(jt.array(from_pixels(photos[:, :, mirror]))).numpy()
                labels[rows] = masks[:, :, mirror][:, ::factor, ::factor]
        latents.flush(), labels.flush()
        del latents, labels
    with written_whole(path / "latents.json") as temporary:
        temporary.write_text(json.dumps(description(network, folder, config)), encoding="utf-8")
    return LatentStore(path)


def one_hot_batch(labels, num_classes):
    """Label maps (N, h, w uint8, numpy) -> one-hot masks (N, classes, h, w float32, Jittor); 255 is no class at all."""
    if ((labels >= num_classes) & (labels != NO_CLASS)).any():
        raise InputError(f"label {labels[labels != NO_CLASS].max()}: the network knows {num_classes} classes")
    classes = jt.arange(num_classes).int32().reshape(1, -1, 1, 1)
    return (jt.array(labels.astype(np.int32)).unsqueeze(1) == classes).float32()
