"""Runs the networks over photos: predicted label maps, and features with their statistics for Frechet distances."""
import hashlib
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jiidm.data.pictures import read_photo, resize_photo
from jiidm.evaluation import metrics
from jiidm.evaluation.class_maps import class_map, merge_outputs
from jiidm.evaluation.inception import inception_input
from jiidm.evaluation.metrics import FeatureStatistics
from jiidm.evaluation.segformer import normalised
from jiidm.evaluation.weights import Evaluator
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import jt

BATCH = 8


def predict(segmenter: Evaluator, photos: list[np.ndarray], sizes: list[tuple[int, int]]) -> list[np.ndarray]:
    """Predicts label maps.

    Args:
        segmenter: from `load_segmenter`.
        photos: H x W x 3 uint8 RGB each, of any sizes.
        sizes: (height, width) of each label map. Logits are enlarged bilinearly before the argmax.

    Returns:
        height x width uint8 each.
    """
    logits, classes = segmenter_logits(segmenter, photos), segmenter.classes
    if classes:
        logits, classes = merge_outputs(logits, classes)
    return [class_map(values, size, classes)[0] for values, size in zip(logits, sizes, strict=True)]


def segmenter_logits(segmenter: Evaluator, photos: list[np.ndarray]) -> np.ndarray:
    """Returns the network's logits of photos, N, outputs, h, w; several outputs may mean one class."""
    config = segmenter.network.config
    batch = normalised(np.stack([resize_photo(photo, config.width, config.height) for photo in photos]))
    with jt.no_grad():
        return segmenter.network(jt.array(batch)).numpy()


class FeatureNetwork:
    """A network whose features a Frechet distance compares.

    Args:
        name: of the distance.
        evaluator: the network and its file.
        describe: how a photo becomes the network's input, in words.
        prepare: the function that does it, H x W x 3 uint8 -> 3 x H x W float32.
        run: a function from a batch of inputs to features, N x D.
    """

    def __init__(self, name: str, evaluator: Evaluator, describe: str, prepare: Callable[[np.ndarray], np.ndarray],
                 run: Callable[[Any], Any]):
        self.name, self.prepare, self.run = name, prepare, run
        self.key = {"distance": name, "network": evaluator.file, "sha256": evaluator.sha256, "input": describe}

    def extract(self, photos: list[np.ndarray]) -> np.ndarray:
        """Returns the features, N x D, of a list of photos (H x W x 3 uint8 RGB)."""
        with jt.no_grad():
            return self.run(jt.array(np.stack([self.prepare(photo) for photo in photos]))).numpy()


def segmenter_features(segmenter: Evaluator) -> FeatureNetwork:
    """Returns the `FeatureNetwork` of a segmenter: its encoder's stages, averaged over the picture."""
    width, height = segmenter.network.config.width, segmenter.network.config.height
    return FeatureNetwork(
        "FD-segmenter", segmenter, f"resized to {width}x{height}; the encoder's stages, averaged over the picture",
        lambda photo: normalised(resize_photo(photo, width, height)[None])[0],
        lambda x: segmenter.network.with_features(x)[1])


def inception_features(inception: Evaluator) -> FeatureNetwork:
    """Returns the `FeatureNetwork` of the FID."""
    return FeatureNetwork("FID", inception, "bilinear to 299x299 without averaging, -1..1; pool3 of 2048",
                          inception_input, inception.network)


def compute_statistics(files: list[Path], network: FeatureNetwork, folder: Path | None) -> FeatureStatistics:
    """Computes the statistics of photos' features, or reads them where they were kept.

    Args:
        files: the photos.
        network: the `FeatureNetwork`.
        folder: keeps them as an npz with `mu`, `sigma` (the names that other programs of the FID use), `count` and
            `protocol`. None: they are not kept.

    Raises:
        InputError: there is only one photo, or one cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    protocol = json.dumps({**network.key, "pictures": len(files), "content": digest.hexdigest()}, sort_keys=True)
    path = folder and folder / f"statistics-{hashlib.sha256(protocol.encode()).hexdigest()[:16]}.npz"
    if path and path.is_file():
        found = _read_kept(path, protocol)
        if found:
            metrics.warn_of_few(found.count, files[0].parent)
            return found
    features = []
    for start in tqdm(range(0, len(files), BATCH), f"{network.name}, photos", unit="batch", mininterval=1):
        features.append(network.extract([_read(file, network) for file in files[start:start + BATCH]]))
    statistics = metrics.feature_statistics(np.concatenate(features), files[0].parent)
    if folder and path:
        output_folder(folder)
        with written_whole(path) as temporary, open(temporary, "wb") as npz:
            np.savez(npz, mu=statistics.mean, sigma=statistics.covariance, count=statistics.count, protocol=protocol)
    return statistics


def _read(file: Path, network: FeatureNetwork) -> np.ndarray:
    """A photo; the error says why none can be left out."""
    try:
        return read_photo(file)
    except InputError as error:
        raise InputError(f"{error}; mend or remove it: the {network.name} is a distance to all photos of the folder") \
            from error


def _read_kept(path: Path, protocol: str) -> FeatureStatistics | None:
    """The statistics in an npz of this protocol; None where it is damaged or of another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["protocol"]) == protocol:
                return FeatureStatistics(file["mu"], file["sigma"], int(file["count"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"jiidm: {path}: cannot be used ({error}); computed anew", file=sys.stderr)
    return None
