"""The measuring of folders of pictures: one pass of the networks, numbers for each picture, figures with intervals."""
import hashlib
import json
import sys
import warnings
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from jiidm.data.labels import CLASSES, read_label_map
from jiidm.data.pictures import read_photo
from jiidm.evaluation import metrics
from jiidm.evaluation.inception import inception_input
from jiidm.evaluation.metrics import FeatureStatistics, FrechetTo, HistogramProtocol
from jiidm.evaluation.pairing import find_pictures, find_tasks, usable
from jiidm.evaluation.segformer import bilinear_matrix, normalised
from jiidm.evaluation.weights import load_inception, load_segmenter
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import announce_compilation, jt

BATCH = 8
RESAMPLES, FRECHET_RESAMPLES = 1000, 200
# per picture: name in the files, words, whether more is better
MEASURES = {
    "mask_accuracy": ("mask accuracy", True),
    "mean_iou": ("mIoU", True),
    "style": ("style correlation", True),
    "lab_mean": ("LAB mean distance", False),
    "lab_std": ("LAB deviation distance", False),
    "aesthetic": ("aesthetic score", True),  # where a function was given
}


@dataclass(frozen=True)
class Protocol:
    """What can be chosen of the measuring; all of it is printed in the report."""

    histogram: HistogramProtocol = field(default_factory=HistogramProtocol)
    resamples: int = RESAMPLES
    frechet_resamples: int = FRECHET_RESAMPLES
    seed: int = 0

    def __post_init__(self):
        if not 40 <= self.frechet_resamples <= self.resamples:
            raise InputError(f"resamples {self.resamples}, {self.frechet_resamples} of them for Frechet distances: "
                             f"expected at least 40 for an interval of 95 %, and no more for the distances than in all")


@dataclass(frozen=True)
class Measured:
    """One folder of pictures: numbers of each picture by name of the measure, `Figure`s over all of them and of each
    class's IoU, and the values of each figure over the same resamples in every folder, from which differences get their
    intervals."""

    name: str
    path: Path
    per_picture: dict
    class_iou: list
    figures: dict
    replicates: dict
    score_terms: tuple


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report tells: `sets` are `Measured` by their part ("results", "compare", "real").

    `differences` and, of each class's IoU, `class_differences` are results minus compare, `shares` the mask accuracy of
    a part as a share of the real photos'.
    """

    stems: list
    tasks: list
    pictures: dict
    sets: dict
    frechet_name: str
    protocol: dict
    problems: list
    differences: dict
    class_differences: list
    shares: dict
    segmenter: object


class FeatureNetwork:
    """What features for a Frechet distance come from: `name` of the distance, `key` that says how they are made, and
    `of(photos)`, the features (N x D) of a list of H x W x 3 uint8 RGB."""

    def __init__(self, name, evaluator, describe, prepare, run):
        self.name, self.prepare, self.run = name, prepare, run
        self.key = {"distance": name, "network": evaluator.file, "sha256": evaluator.sha256, "input": describe}

    def of(self, photos):
        with jt.no_grad():
            return self.run(jt.array(np.stack([self.prepare(photo) for photo in photos]))).numpy()


def segmenter_features(evaluator):
    """The `FeatureNetwork` of a segmenter: its encoder's stages, averaged over the picture."""
    config = evaluator.network.config
    size = config.width, config.height
    return FeatureNetwork(
        "FD-segmenter", evaluator, f"resized to {size[0]}x{size[1]}; the encoder's stages, averaged over the picture",
        lambda photo: normalised(resized(photo, *size)[None])[0], lambda x: evaluator.network.with_features(x)[1])


def inception_features(evaluator):
    """The `FeatureNetwork` of the FID."""
    return FeatureNetwork("FID", evaluator, "bilinear to 299x299 without averaging, -1..1; pool3 of 2048",
                          inception_input, evaluator.network)


def resized(photo, width, height):
    """The whole of H x W x 3 uint8 as height x width x 3: areas averaged when it shrinks, bicubic when it grows.

    Nothing is cropped: place for place it has to be the label map's picture.
    """
    shrinks = photo.shape[0] >= height and photo.shape[1] >= width
    return cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def predict(evaluator, photos, sizes):
    """Label maps (list of H x W uint8) that the segmenter predicts for photos (list of H x W x 3 uint8 RGB), in `sizes`
    (list of (height, width)): logits are enlarged bilinearly before the largest is taken."""
    config = evaluator.network.config
    batch = normalised(np.stack([resized(photo, config.width, config.height) for photo in photos]))
    with jt.no_grad():
        logits = evaluator.network(jt.array(batch)).numpy()
    found = []
    for values, (height, width) in zip(logits, sizes, strict=True):
        rows, columns = bilinear_matrix(values.shape[1], height), bilinear_matrix(values.shape[2], width)
        found.append((rows @ values @ columns.T).argmax(0).astype(np.uint8))
    return found


def statistics_of(files, network, folder):
    """`FeatureStatistics` of the photos `files`, kept in `folder` (None: not kept) as an npz that names its protocol.

    The npz has `mu`, `sigma` (as other programs of the FID write them), `count` and `protocol`. Raises InputError for
    one photo alone, and for a photo that cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    protocol = json.dumps({**network.key, "pictures": len(files), "content": digest.hexdigest()}, sort_keys=True)
    path = folder and folder / f"statistics-{hashlib.sha256(protocol.encode()).hexdigest()[:16]}.npz"
    if path and path.is_file():
        found = _kept(path, protocol)
        if found:
            metrics.warn_of_few(found.count, files[0].parent)
            return found
    features = []
    for start in tqdm(range(0, len(files), BATCH), f"{network.name}, photos", unit="batch", mininterval=1):
        features.append(network.of([_photo_of_all(file, network) for file in files[start:start + BATCH]]))
    statistics = metrics.feature_statistics(np.concatenate(features), files[0].parent)
    if path:
        output_folder(folder)
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, mu=statistics.mean, sigma=statistics.covariance, count=statistics.count, protocol=protocol)
    return statistics


def _photo_of_all(file, network):
    try:
        return read_photo(file)
    except InputError as error:
        raise InputError(f"{error}; mend or remove it: the {network.name} is a distance to all photos of the folder") \
            from error


def _kept(path, protocol):
    """The statistics in an npz of this protocol; None where it is damaged or of another."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["protocol"]) == protocol:
                return FeatureStatistics(file["mu"], file["sigma"], int(file["count"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"jiidm: {path}: cannot be used ({error}); computed anew", file=sys.stderr)
    return None


def evaluate(results, labels, references, real=None, compare=None, segmenter=None, inception=None, keep=None,
             allow_missing=False, aesthetic=None, protocol=None):
    """Measures the folder `results` of STEM.jpg for the label maps `labels`; see `find_tasks` for `references`.

    real: a folder of photos of the same masks, whose figures are the ceiling. compare: another folder of results.
    segmenter, inception: files of weights (None: the package's segmenter; FD-segmenter in place of the FID). keep: a
    folder for the photos' feature statistics. aesthetic: a function that gives 0..1 for H x W x 3 uint8 RGB.
    protocol: a `Protocol`. Returns an `Evaluation`. Raises InputError for what cannot be measured; missing, extra,
    unreadable and mis-sized pictures and label maps outside the classes only without `allow_missing`.
    """
    protocol = protocol or Protocol()
    tasks, photos, problems = find_tasks(labels, references)
    pictures = {}
    for part, path in (("results", results), ("compare", compare), ("real", real)):
        if path is not None:
            path = Path(path) / "imgs" if part == "real" and (Path(path) / "imgs").is_dir() else Path(path)
            pictures[part], found = find_pictures(path, tasks, one_size=part != "real", extra_allowed=part == "real")
            problems += found
    evaluator = load_segmenter(segmenter)
    tasks = usable(tasks, list(pictures.values()), len(CLASSES), problems, allow_missing)
    if len(tasks) < 2:
        raise InputError(f"{results}: one picture to measure; a Frechet distance and an interval need at least 2")
    network = inception_features(load_inception(inception)) if inception else segmenter_features(evaluator)
    with announce_compilation("the evaluation's networks"):
        wanted = statistics_of(photos, network, keep)
        raw = {part: _pass(part, tasks, found, evaluator, network, aesthetic, protocol)
               for part, found in pictures.items()}
    indices = metrics.resamples(len(tasks), protocol.resamples, protocol.seed)
    sets = {part: _figures(part, pictures[part].path, *raw[part], wanted, network.name, indices, protocol)
            for part in pictures}
    compared = (sets["results"], sets["compare"]) if compare is not None else ()
    about = _about(protocol, pictures, tasks, photos, evaluator, network, aesthetic)
    _tell_unseen(evaluator, raw["results"][1].sum((0, 2)), about)
    shares = {part: _share(found, sets["real"]) for part, found in sets.items() if real is not None and part != "real"}
    return Evaluation([task.stem for task in tasks], tasks, pictures, sets, network.name, about, problems,
                      differences(*compared) if compared else {}, _class_differences(*compared) if compared else [],
                      shares, evaluator)


def _pass(part, tasks, pictures, evaluator, network, aesthetic, protocol):
    """Numbers by name of the measure, `confusion` matrices and features of each picture."""
    numbers = {name: [] for name in MEASURES if aesthetic or name != "aesthetic"}
    matrices, features = [], []
    for start in tqdm(range(0, len(tasks), BATCH), part, unit="batch", mininterval=1):
        some = tasks[start:start + BATCH]
        shown = [read_photo(pictures.files[task.stem]) for task in some]
        truths = [read_label_map(task.labels, len(CLASSES), allow_no_class=True) for task in some]
        features.append(network.of(shown))
        predicted = predict(evaluator, shown, [truth.shape for truth in truths])
        for task, picture, truth, labels in zip(some, shown, truths, predicted, strict=True):
            matrices.append(metrics.confusion(truth, labels, len(CLASSES)))
            numbers["mask_accuracy"].append(metrics.mask_accuracy(matrices[-1]))
            numbers["mean_iou"].append(metrics.mean_iou(matrices[-1]))
            reference = read_photo(task.reference)
            numbers["style"].append(metrics.style_correlation(picture, reference, protocol.histogram))
            for name, value in zip(("lab_mean", "lab_std"), metrics.lab_distances(picture, reference), strict=True):
                numbers[name].append(value)
            if aesthetic:
                numbers["aesthetic"].append(_checked(aesthetic(picture), pictures.files[task.stem]))
    return {name: np.array(values) for name, values in numbers.items()}, np.stack(matrices), np.concatenate(features)


def _checked(aesthetic, file):
    try:
        if 0 <= float(aesthetic) <= 1:
            return float(aesthetic)
    except Exception:  # noqa: BLE001 - whatever somebody's array or tensor raises: it is no number
        aesthetic = type(aesthetic).__name__
    raise InputError(f"{file}: the aesthetic function gives {aesthetic}; expected a number from 0 to 1")


def _figures(part, path, numbers, matrices, features, wanted, distance, indices, protocol):
    """The `Measured` of one folder from what `_pass` gave."""
    values, replicates = {}, {}
    for name, each in numbers.items():
        if name != "mean_iou":  # over all pictures it is that of all their pixels, not a mean of means
            values[name], replicates[name] = np.nanmean(each), _resampled_means(each, indices)
    # the matrices of a resample add up: counts of the pictures in it, times the matrices
    counts = np.stack([np.bincount(row, minlength=len(matrices)) for row in indices]).astype(np.float64)
    pooled = (counts @ matrices.reshape(len(matrices), -1)).reshape(-1, *matrices.shape[1:])
    values["mean_iou"], replicates["mean_iou"] = metrics.mean_iou(matrices.sum(0)), metrics.mean_iou(pooled)
    values[distance] = metrics.frechet_distance(metrics.feature_statistics(features, path), wanted)
    resampled = FrechetTo(features, wanted)
    some = np.array([resampled.distance(row) for row in indices[:protocol.frechet_resamples]])
    replicates[distance] = np.maximum(0, metrics.centred(some, values[distance]))  # a distance, shifted or not
    terms = {name: key for name, key in (("style", "style"), ("fid", "FID"), ("aesthetic", "aesthetic"))
             if key in values}
    values["score"], used = metrics.contest_score(
        values["mask_accuracy"], **{name: values[key] for name, key in terms.items()})
    shortest = min(len(replicates[key]) for key in terms.values())
    replicates["score"] = metrics.contest_score(
        replicates["mask_accuracy"][:shortest],
        **{name: replicates[key][:shortest] for name, key in terms.items()})[0]
    figures = {name: metrics.figure(value, replicates[name]) for name, value in values.items()}
    replicates["class_iou"] = metrics.class_iou(pooled)
    class_iou = [metrics.figure(*each) for each in zip(metrics.class_iou(matrices.sum(0)), replicates["class_iou"].T,
                                                       strict=True)]
    return Measured(part, path, numbers, class_iou, figures, replicates, used)


def _resampled_means(each, indices):
    known = np.isfinite(each)
    sums, counts = np.where(known, each, 0)[indices].sum(1), known[indices].sum(1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def differences(first, second):
    """{name: `Figure`} of the `Measured` first minus second, from the same resamples of the pictures of both."""
    return {name: _apart(figure, second.figures[name], first.replicates[name], second.replicates[name])
            for name, figure in first.figures.items()}


def _class_differences(first, second):
    """The same of each class's IoU."""
    return [_apart(*each) for each in zip(first.class_iou, second.class_iou, first.replicates["class_iou"].T,
                                          second.replicates["class_iou"].T, strict=True)]


def _apart(one, other, replicates, others):
    count = min(len(replicates), len(others))
    return metrics.figure(one.value - other.value, replicates[:count] - others[:count])


def _share(measured, real):
    """The `Figure` of a folder's mask accuracy as a share of that on the real photos."""
    replicates = [found.replicates["mask_accuracy"] for found in (measured, real)]
    values = [found.figures["mask_accuracy"].value for found in (measured, real)]
    return metrics.figure(values[0] / max(values[1], 1e-9), replicates[0] / np.maximum(replicates[1], 1e-9))


def _tell_unseen(evaluator, pixels, about):
    """Warns, and says in the protocol, which classes of the label maps, pixels of each, the segmenter never saw."""
    unseen = [CLASSES[c] for c in np.flatnonzero(pixels) if evaluator.known and c not in evaluator.known.classes]
    if unseen:
        about["classes unknown to the segmenter"] = (
            f"{', '.join(unseen)}: {pixels[[CLASSES.index(c) for c in unseen]].sum() / pixels.sum():.1%} of the label "
            f"maps' pixels, all of which count as wrong")
        warnings.warn(f"{evaluator.file}: was trained without the classes {', '.join(unseen)}, whose pixels count as "
                      f"wrong; give a segmenter that knows them (tools/train.py segmenter)", stacklevel=3)


def _about(protocol, pictures, tasks, photos, evaluator, network, aesthetic):
    """The protocol: everything that somebody else needs to get the same numbers, in words."""
    config = evaluator.network.config
    sizes = {read_label_map(task.labels, 256, allow_no_class=True).shape[::-1] for task in tasks}
    few = f"; {metrics.BIASED}" if min(len(tasks), len(photos)) < metrics.FEW_SAMPLES else ""
    rule = "whole, areas averaged when it shrinks, bicubic when it grows"
    about = {
        "pictures measured": len(tasks),
        "size of the pictures": "; ".join(f"{part} {found.size[0]}x{found.size[1]}" if found.size else
                                          f"{part} as they are" for part, found in pictures.items()),
        "size of the label maps": ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4]),
        "segmenter": f"{evaluator.file}, sha256 {evaluator.sha256}, {_classes_of(evaluator)}; picture to "
                     f"{config.width}x{config.height} ({rule}); logits bilinear to the label map's size, then argmax",
        "mask accuracy": "mean(gt == predicted) of each picture, pixels without class left out; mean over pictures",
        "mIoU": "from the pixels of all pictures together; classes that label maps and predictions both lack left out",
        "style": f"{protocol.histogram.describe()}; both pictures in their own size",
        "LAB": "Euclidean distance of the three channels' means, and of their deviations; OpenCV's float LAB",
        network.name: f"{network.key['network']}, sha256 {network.key['sha256']}; {network.key['input']}; float64; "
                      f"against {len(photos)} photos of {photos[0].parent}{few}",
        "intervals": f"95 %, percentiles of {protocol.resamples} bootstrap resamples of the pictures, seed "
                     f"{protocol.seed}; {network.name} and scores with it: {protocol.frechet_resamples} resamples, the "
                     f"photos fixed, shifted by the mean bias of the resamples",
    }
    if network.name != "FID":
        about["FID"] = "not measured: no file of Inception weights was given; FD-segmenter is no FID"
    if evaluator.known and evaluator.known.mask_accuracy is not None:
        about["segmenter on held-out photos"] = (
            f"mask accuracy {evaluator.known.mask_accuracy:.4f}, mIoU {evaluator.known.mean_iou:.4f}, "
            f"{evaluator.known.photos} photos")
    about["aesthetic score"] = "not measured: no function was given"
    if aesthetic is not None:
        name = getattr(aesthetic, "__qualname__", type(aesthetic).__qualname__)
        about["aesthetic score"] = f"mean of {getattr(aesthetic, '__module__', '')}.{name} over the pictures, each 0..1"
    return about


def _classes_of(evaluator):
    count, known = evaluator.network.config.num_classes, evaluator.known
    if known is None:
        return f"{count} classes"
    return f"{len(known.classes)} of {count} classes ({', '.join(CLASSES[c] for c in known.classes)})"
