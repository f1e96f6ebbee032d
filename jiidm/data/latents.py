"""What the UNet is trained on: latents in a store, or encoded on the fly."""
import hashlib
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jiidm.data.labels import NO_CLASS
from jiidm.data.loader import Loader
from jiidm.data.pictures import from_pixels
from jiidm.data.views import draw_views, load_pairs, whole_view
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import jt

_BATCH = 8
_VIEWS = 6  # purpose of random numbers, beside those of the trainings


class LatentStore:
    """Latents (M, C, h, w float32) and label maps (M, h, w uint8) on disk, memory-mapped.

    A photo has `per_photo` entries, one after the other: the whole photo and its mirror image, then further views of
    it, each followed by its mirror image. A label map has the latent's size, reduced as the UNet would do it.
    """

    def __init__(self, path):
        path = Path(path)
        try:
            self.latents = np.load(path / "latents.npy", mmap_mode="r")
            self.labels = np.load(path / "labels.npy", mmap_mode="r")
            self.about = json.loads((path / "latents.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: no readable store of latents ({error}); make it with jiidm train latents"
            ) from error

    def __len__(self):
        return len(self.latents)

    @property
    def per_photo(self):
        return 2 * self.about.get("views", 1)

    @property
    def shape(self):
        """C, h, w of a latent."""
        return self.latents.shape[1:]

    def name(self, index, photos):
        """What messages call an entry; `photos` are the photos' names."""
        number, entry = divmod(index, self.per_photo)
        about = [f"view {entry // 2}"] * (entry > 1) + ["mirrored"] * (entry % 2)
        return f"{photos[number]} ({', '.join(about)})" if about else photos[number]

    def whole(self, count):
        """Latents and label maps of `count` whole photos, evenly spread."""
        rows = np.linspace(0, len(self) // self.per_photo - 1, count).astype(int) * self.per_photo
        return self.latents[rows], self.labels[rows]

    def label_maps(self):
        """Yields the label map of each whole photo."""
        yield from self.labels[:: self.per_photo]

    def batch(self, indices, own, random):
        """What `latents_of` takes, and label maps, of the entries `indices[own]` (numpy); called in threads.

        random: a generator for what is drawn of the whole batch; here nothing is.
        """
        return self.latents[indices[own]], self.labels[indices[own]]

    def latents_of(self, rows):
        """The latents as a Var."""
        return jt.array(rows)


class PhotoLatents:
    """Stands in for a `LatentStore`: an entry is a photo, of which each batch draws a new view, encoded when it is
    computed. `network` is the autoencoder, `scale` the most that a view is enlarged."""

    def __init__(self, network, folder, config):
        self.network, self.folder, self.config = network, folder, config
        self.scale = config.train_unet.scale
        image, factor = config.image, config.autoencoder.factor
        self.shape = config.autoencoder.embed_dim, image.height // factor, image.width // factor
        self.per_photo = 1

    def __len__(self):
        return len(self.folder)

    def name(self, index, photos):
        """As `LatentStore.name`."""
        return photos[index]

    def whole(self, count):
        """As `LatentStore.whole`."""
        image = self.config.image
        rows = np.linspace(0, len(self) - 1, count).astype(int)
        photos, labels = self._pairs(rows, [whole_view(image.width, image.height)] * count)
        return self.latents_of(photos).numpy(), labels

    def label_maps(self):
        """As `LatentStore.label_maps`, as large as the photos."""
        return self.folder.label_maps(self.config.unet.num_classes)

    def batch(self, indices, own, random):
        """As `LatentStore.batch`: photos (N, H, W, 3 uint8) and label maps of the latents' size."""
        image = self.config.image
        # drawn for the whole batch: the views do not depend on the number of processes
        views = draw_views(random, len(indices), image.width, image.height, image.height, image.width, self.scale)
        return self._pairs(indices[own], views[own])

    def latents_of(self, photos):
        """The latents of photos as a Var, computed, without gradient."""
        return encoded(self.network, photos)

    def _pairs(self, indices, views):
        names, factor = [self.folder.names[i] for i in indices], self.config.autoencoder.factor
        photos, labels = load_pairs(self.folder, names, views, self.config.unet.num_classes)
        return photos, labels[:, ::factor, ::factor]


def encoded(network, photos):
    """E(x) of photos (N, H, W, 3 uint8) as a Var without gradient, computed; a few at a time: a photo's features at
    full resolution are large."""
    parts = []
    with jt.no_grad():
        for first in range(0, len(photos), _BATCH):
            parts.append(network.encode(jt.array(from_pixels(photos[first : first + _BATCH]))).detach())
            parts[-1].sync()
        return parts[0] if len(parts) == 1 else jt.concat(parts)


def description(network, folder, config):
    """What a store of latents depends on: the autoencoder's weights, the pictures' size, the data folder's files, how
    its label maps are read."""
    training = config.train_unet
    drawn = {"views": training.views, "scale": training.scale, "seed": config.seed} if training.views > 1 else {}
    maps = {"maps": folder.reading} if folder.reading else {}
    return {
        "autoencoder": weights_hash(network), "width": config.image.width, "height": config.image.height,
        "photos": len(folder), "files": files_hash(folder), **drawn, **maps,
    }


def files_hash(folder):
    """SHA-256 of names, sizes and dates of the files of a `TrainingFolder`."""
    files = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for n in folder.names for p in folder.paths(n)]
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def weights_hash(network):
    """SHA-256 of all parameters of a network."""
    return hashlib.sha256(b"".join(p.numpy().tobytes() for p in network.parameters())).hexdigest()


def _views_of(number, config):
    """The views of photo `number` that a store holds, the whole photo first."""
    width, height, training = config.image.width, config.image.height, config.train_unet
    random = np.random.Generator(np.random.PCG64([config.seed, number, _VIEWS]))
    further = draw_views(random, training.views - 1, width, height, height, width, training.scale)
    return [whole_view(width, height), *(view._replace(mirrored=False) for view in further)]


def write_latents(path, network, folder, config):
    """Encodes the views of every photo of a `TrainingFolder`, and their mirror images, with the autoencoder `network`.

    Pictures have the size and labels the classes of `config`. Writes `latents.npy`, `labels.npy` and, last,
    `latents.json` into the folder `path`; returns the `LatentStore`.
    """
    path, image, factor = output_folder(path), config.image, config.autoencoder.factor
    (path / "latents.json").unlink(missing_ok=True)
    views = config.train_unet.views
    count, height, width = 2 * views * len(folder), image.height // factor, image.width // factor
    channels = network.quantize.embedding.weight.shape[1]
    starts = [(first, view) for first in range(0, len(folder), _BATCH) for view in range(views)]

    def pairs_of(number):
        first, view = starts[number]
        numbers = range(first, min(first + _BATCH, len(folder)))
        chosen = [_views_of(n, config)[view] for n in numbers]
        return load_pairs(folder, [folder.names[n] for n in numbers], chosen, config.unet.num_classes)

    with written_whole(path / "latents.npy") as latents_path, written_whole(path / "labels.npy") as labels_path, \
            Loader(pairs_of, 0, len(starts)) as pairs:
        latents = np.lib.format.open_memmap(latents_path, "w+", np.float32, (count, channels, height, width))
        labels = np.lib.format.open_memmap(labels_path, "w+", np.uint8, (count, height, width))
        bar = tqdm(starts, "latents", unit="batch", dynamic_ncols=True)
        for (first, view), (photos, masks) in zip(bar, pairs, strict=True):
            for i, mirror in enumerate((slice(None), slice(None, None, -1))):
                entries = slice(2 * (first * views + view) + i, 2 * (first + len(photos)) * views, 2 * views)
                latents[entries] = encoded(network, photos[:, :, mirror]).numpy()
                labels[entries] = masks[:, :, mirror][:, ::factor, ::factor]
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
