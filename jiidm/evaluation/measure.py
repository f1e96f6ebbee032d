"""Measures folders of pictures: one pass of the networks, numbers of each picture, figures with intervals."""
import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jiidm.data.classes import ClassTable
from jiidm.data.labels import CLASSES, resize_labels
from jiidm.data.pictures import read_photo
from jiidm.data.vocabulary import LabelReader
from jiidm.evaluation import metrics
from jiidm.evaluation.features import (
    BATCH,
    FeatureNetwork,
    compute_statistics,
    inception_features,
    predict,
    segmenter_features,
)
from jiidm.evaluation.judge import NEAR_CLASSES, NOTHING, Judge, load_judge
from jiidm.evaluation.judged import judge_folders
from jiidm.evaluation.metrics import FeatureStatistics, Figure, FrechetTo
from jiidm.evaluation.pairing import Pictures, Task, find_pictures, find_tasks, select_tasks
from jiidm.evaluation.weights import Evaluator, load_inception, load_segmenter
from jiidm.system.errors import InputError
from jiidm.system.runtime import announce_compilation

RESAMPLES, FRECHET_RESAMPLES = 1000, 200
SHOWN_WIDTH = 224  # of the pictures in a report
# per picture: name in the files, words, whether more is better
MEASURES = {
    "mask_accuracy": ("mask accuracy", True),
    "mean_iou": ("mIoU", True),
    "style": ("style correlation", True),
    "lab_mean": ("LAB mean distance", False),
    "lab_std": ("LAB std distance", False),
    "aesthetic": ("aesthetic score", True),  # where a function was given
}


@dataclass(frozen=True)
class Protocol:
    """How intervals are computed; the report states it.

    Args:
        resamples: bootstrap resamples of the pictures.
        frechet_resamples: how many of them are for Frechet distances, which are slower; at least 40.
        seed: of the resamples.
    """

    resamples: int = RESAMPLES
    frechet_resamples: int = FRECHET_RESAMPLES
    seed: int = 0

    def __post_init__(self):
        if not 40 <= self.frechet_resamples <= self.resamples:
            raise InputError(f"resamples {self.resamples}, {self.frechet_resamples} of them for Frechet distances: "
                             f"expected at least 40 for an interval of 95 %, and no more for the distances than in all")


@dataclass(frozen=True)
class Measured:
    """The numbers of one folder of pictures.

    Args:
        name: the part: "results", "compare" or "real".
        path: the folder.
        per_picture: arrays of each picture's numbers, by name of the measure.
        class_iou: a `Figure` for each class.
        figures: `Figure`s over all pictures, by name.
        replicates: the values of each figure over the same resamples in every folder, for intervals of differences.
        score_terms: the terms of the contest's score that were measured.
    """

    name: str
    path: Path
    per_picture: dict[str, np.ndarray]
    class_iou: list[Figure]
    figures: dict[str, Figure]
    replicates: dict[str, np.ndarray]
    score_terms: tuple[str, ...]


@dataclass(frozen=True)
class Evaluation:
    """All that a report tells.

    Args:
        tasks: the `Task`s that were measured.
        pictures: the `Pictures` of each part ("results", "compare", "real").
        sets: the `Measured` of each part.
        frechet_name: the Frechet distance: "FID" or "FD-segmenter".
        protocol: what somebody else needs to get the same numbers, in words, by topic.
        problems: sentences on what was left out.
        differences: `Figure`s of results minus compare, by name.
        class_differences: the same of each class's IoU.
        ratios: mask accuracy of a part divided by that of the real photos, a `Figure` each.
        segmenter: the `Evaluator` of the mask accuracy.
        predictions: the label map that the segmenter predicts for each result, `SHOWN_WIDTH` pixels wide.
        judge: name of the judge's file. "": its figures are missing, and the protocol says why.
        reader: what reads the label maps of the tasks.
    """

    tasks: list[Task]
    pictures: dict[str, Pictures]
    sets: dict[str, Measured]
    frechet_name: str
    protocol: dict[str, str | int]
    problems: list[str]
    differences: dict[str, Figure]
    class_differences: list[Figure]
    ratios: dict[str, Figure]
    segmenter: Evaluator
    predictions: list[np.ndarray]
    judge: str
    reader: LabelReader

    @property
    def classes(self) -> ClassTable:
        """The classes of label maps and predictions."""
        return self.segmenter.vocabulary.table

    @property
    def stems(self) -> list[str]:
        """The names of the pictures."""
        return [task.stem for task in self.tasks]


def evaluate(
    results: str | Path,
    labels: str | Path,
    references: str | Path,
    real: str | Path | None = None,
    compare: str | Path | None = None,
    *,
    segmenter: str | Path | None = None,
    segmenter_classes: str | Path | dict[int, int] | None = None,
    judge: str | Path | bool = True,
    inception: str | Path | None = None,
    aesthetic: Callable[[np.ndarray], float] | None = None,
    statistics: str | Path | None = None,
    allow_missing: bool = False,
    protocol: Protocol | None = None,
    classes: str | Path | ClassTable = "auto",
    snap: bool = False,
) -> Evaluation:
    """Measures generated pictures against label maps and style references.

    Args:
        results: folder of STEM.jpg, one for each label map.
        labels: folder of label PNGs beside a label_to_img.json, or the test folder that holds both.
        references: folder of the style photos, or its parent with imgs/, or another label_to_img.json beside them.
        real: folder of real photos of the same masks; their figures are the ceiling.
        compare: another folder of results, for paired differences.
        segmenter: file of a SegFormer. None: the package's own.
        segmenter_classes: {index in the segmenter: our class}, or a YAML or JSON file of it, for a SegFormer that was
            trained for other classes than the contest's.
        judge: file of the judge's head. True: the package's own, where the extra "judge" is installed. False: none of
            the judge's figures.
        inception: file of the FID's Inception weights. None: FD-segmenter in place of the FID.
        aesthetic: a function from H x W x 3 uint8 RGB to a score 0..1. None: no aesthetic score.
        statistics: folder that keeps the photos' feature statistics. None: they are not kept.
        allow_missing: measure the rest where pictures are missing, extra, unreadable or of another size.
        protocol: how intervals are computed. None: the default.
        classes, snap: how label maps are read, as for `Generator.infer`; their classes are the segmenter's.

    Returns:
        An `Evaluation`; `report.write_report` writes it.

    Raises:
        InputError: something cannot be measured.
    """
    protocol = protocol or Protocol()
    tasks, photos, problems = find_tasks(labels, references)
    pictures = {}
    for part, path in (("results", results), ("compare", compare), ("real", real)):
        if path is not None:
            path = Path(path) / "imgs" if part == "real" and (Path(path) / "imgs").is_dir() else Path(path)
            pictures[part], found = find_pictures(path, tasks, one_size=part != "real", extra_allowed=part == "real")
            problems += found
    evaluator = load_segmenter(segmenter, segmenter_classes)
    reader = LabelReader(dataclasses.replace(evaluator.vocabulary, seen=None, known=None), classes, snap)
    tasks = select_tasks(tasks, list(pictures.values()), reader, problems, allow_missing)
    if len(tasks) < 2:
        raise InputError(f"{results}: one picture to measure; a Frechet distance and an interval need at least 2")
    network = inception_features(load_inception(inception)) if inception else segmenter_features(evaluator)
    judging, no_judge = find_judge(judge)
    with announce_compilation("the evaluation's networks"):
        wanted = compute_statistics(photos, network, Path(statistics) if statistics else None)
        raw = {part: _measure_pictures(part, tasks, found, evaluator, network, aesthetic, reader)
               for part, found in pictures.items()}
    indices = metrics.resamples(len(tasks), protocol.resamples, protocol.seed)
    sets = {part: _compute_figures(part, pictures[part].path, found, wanted, network.name, indices, protocol)
            for part, found in raw.items()}
    if judging:
        files = {part: found.files for part, found in pictures.items()}
        for part, found in judge_folders(judging, tasks, files, indices, protocol.resamples).items():
            for name in ("per_picture", "figures", "replicates"):
                getattr(sets[part], name).update(getattr(found, name))
    compared = (sets["results"], sets["compare"]) if compare is not None else ()
    about = _describe_protocol(protocol, pictures, tasks, photos, evaluator, network, aesthetic, reader)
    about.update(describe_judge(judging) if judging else {"judge": no_judge})
    _warn_of_unseen_classes(evaluator, raw["results"].confusion.sum((0, 2)), about)
    return Evaluation(
        tasks, pictures, sets, network.name, about, problems,
        subtract(*compared) if compared else {}, _subtract_classes(*compared) if compared else [],
        {part: _divide_accuracy(found, sets["real"]) for part, found in sets.items() if part != "real"}
        if real is not None else {},
        evaluator, raw["results"].predictions, judging.file if judging else "", reader)


def find_judge(judge: str | Path | bool) -> tuple[Judge | None, str]:
    """The `Judge` that `evaluate` is asked for, or None and why there is none, in words."""
    if judge is False:
        return None, "not measured: it was not asked for"
    if judge is not True:
        return load_judge(judge), ""
    try:
        return load_judge(), ""
    except InputError as error:
        return None, f"not measured: {error}"


@dataclass(frozen=True)
class _Raw:
    """Of the pictures of a folder: numbers by measure, confusion matrices, features, label maps to be shown."""

    numbers: dict[str, np.ndarray]
    confusion: np.ndarray
    features: np.ndarray
    predictions: list[np.ndarray]


def _measure_pictures(part: str, tasks: list[Task], pictures: Pictures, evaluator: Evaluator, network: FeatureNetwork,
                      aesthetic: Callable | None, reader: LabelReader) -> _Raw:
    """Runs the networks and the measures over the pictures of one folder."""
    numbers: dict[str, list] = {name: [] for name in MEASURES if aesthetic or name != "aesthetic"}
    matrices, features, predictions = [], [], []
    for start in tqdm(range(0, len(tasks), BATCH), part, unit="batch", mininterval=1):
        some = tasks[start:start + BATCH]
        shown = [read_photo(pictures.files[task.stem]) for task in some]
        truths = [reader.read(task.labels) for task in some]
        features.append(network.extract(shown))
        predicted = predict(evaluator, shown, [(len(truth), truth.shape[1]) for truth in truths])
        for task, picture, truth, labels in zip(some, shown, truths, predicted, strict=True):
            matrices.append(metrics.confusion(truth, labels, len(evaluator.vocabulary)))
            predictions.append(shrink_labels(labels))
            reference = read_photo(task.reference)
            lab_mean, lab_std = metrics.lab_distances(picture, reference)
            found = {
                "mask_accuracy": metrics.mask_accuracy(matrices[-1]), "mean_iou": metrics.mean_iou(matrices[-1]),
                "style": metrics.style_correlation(picture, reference), "lab_mean": lab_mean, "lab_std": lab_std,
            }
            if aesthetic:
                found["aesthetic"] = _check_score(aesthetic(picture), pictures.files[task.stem])
            for name, value in found.items():
                numbers[name].append(value)
    return _Raw({name: np.array(values) for name, values in numbers.items()}, np.stack(matrices),
                np.concatenate(features), predictions)


def shrink_labels(labels: np.ndarray) -> np.ndarray:
    """Resizes H x W labels to the width of the pictures in a report."""
    return resize_labels(labels, SHOWN_WIDTH, max(1, round(SHOWN_WIDTH * labels.shape[0] / labels.shape[1])))


def _check_score(score: Any, file: Path) -> float:
    """An aesthetic score as a number; raises InputError where it is none from 0 to 1."""
    try:
        if 0 <= float(score) <= 1:
            return float(score)
    except Exception:  # noqa: BLE001 - whatever somebody's array or tensor raises: it is no number
        score = type(score).__name__
    raise InputError(f"{file}: the aesthetic function gives {score}; expected a number from 0 to 1")


def _compute_figures(part: str, path: Path, raw: _Raw, wanted: FeatureStatistics, distance: str, indices: np.ndarray,
                     protocol: Protocol) -> Measured:
    """The figures of one folder, with their values over the resamples."""
    values, replicates, matrices = {}, {}, raw.confusion
    for name, each in raw.numbers.items():
        if name != "mean_iou":  # over all pictures it is that of all their pixels, not a mean of means
            values[name], replicates[name] = np.nanmean(each), _resample_means(each, indices)
    # the matrices of a resample add up: counts of the pictures in it, times the matrices
    counts = np.stack([np.bincount(row, minlength=len(matrices)) for row in indices]).astype(np.float64)
    pooled = (counts @ matrices.reshape(len(matrices), -1)).reshape(-1, *matrices.shape[1:])
    values["mean_iou"], replicates["mean_iou"] = metrics.mean_iou(matrices.sum(0)), metrics.mean_iou(pooled)
    values[distance] = metrics.frechet_distance(metrics.feature_statistics(raw.features, path), wanted)
    resampled = FrechetTo(raw.features, wanted)
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
    return Measured(part, path, raw.numbers, class_iou, figures, replicates, used)


def _resample_means(each: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """The mean of each resample, over the pictures that have a number."""
    known = np.isfinite(each)
    sums, counts = np.where(known, each, 0)[indices].sum(1), known[indices].sum(1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def subtract(first: Measured, second: Measured) -> dict[str, Figure]:
    """Returns the `Figure`s of first minus second, by name, from the same resamples of the pictures of both."""
    return {name: _subtract_figures(figure, second.figures[name], first.replicates[name], second.replicates[name])
            for name, figure in first.figures.items()}


def _subtract_classes(first: Measured, second: Measured) -> list[Figure]:
    """The same of each class's IoU."""
    return [_subtract_figures(*each) for each in zip(
        first.class_iou, second.class_iou, first.replicates["class_iou"].T, second.replicates["class_iou"].T,
        strict=True)]


def _subtract_figures(one: Figure, other: Figure, replicates: np.ndarray, others: np.ndarray) -> Figure:
    """The difference of two figures over the resamples that both have."""
    count = min(len(replicates), len(others))
    return metrics.figure(one.value - other.value, replicates[:count] - others[:count])


def _divide_accuracy(measured: Measured, real: Measured) -> Figure:
    """A folder's mask accuracy divided by that of the real photos."""
    replicates = [found.replicates["mask_accuracy"] for found in (measured, real)]
    values = [found.figures["mask_accuracy"].value for found in (measured, real)]
    return metrics.figure(values[0] / max(values[1], 1e-9), replicates[0] / np.maximum(replicates[1], 1e-9))


def _warn_of_unseen_classes(evaluator: Evaluator, pixels: np.ndarray, about: dict) -> None:
    """Warns, and says in the protocol, which classes of the label maps the segmenter never saw."""
    names = evaluator.vocabulary.names
    unseen = [names[c] for c in np.flatnonzero(pixels) if evaluator.known and c not in evaluator.known.classes]
    if unseen:
        about["classes unknown to the segmenter"] = (
            f"{', '.join(unseen)}: {pixels[[names.index(c) for c in unseen]].sum() / pixels.sum():.1%} of the label "
            f"maps' pixels, all of which count as wrong")
        warnings.warn(f"{evaluator.file}: was trained without the classes {', '.join(unseen)}, whose pixels count as "
                      f"wrong; give a segmenter that knows them (jiidm train segmenter)", stacklevel=3)


def _describe_protocol(protocol: Protocol, pictures: dict[str, Pictures], tasks: list[Task], photos: list[Path],
                       evaluator: Evaluator, network: FeatureNetwork, aesthetic: Callable | None,
                       reader: LabelReader) -> dict:
    """All that somebody else needs to get the same numbers, in words, by topic."""
    config = evaluator.network.config
    sizes = {reader.read(task.labels).shape[::-1] for task in tasks}
    few = f"; {metrics.BIASED}" if min(len(tasks), len(photos)) < metrics.FEW_SAMPLES else ""
    rule = "whole, areas averaged when it shrinks, bicubic when it grows"
    about = {
        "pictures measured": len(tasks),
        "size of the pictures": "; ".join(f"{part} {found.size[0]}x{found.size[1]}" if found.size else
                                          f"{part} as they are" for part, found in pictures.items()),
        "size of the label maps": ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4]),
        "segmenter": f"{evaluator.file}, sha256 {evaluator.sha256}, {_describe_classes(evaluator)}; picture to "
                     f"{config.width}x{config.height} ({rule}); logits bilinear to the label map's size, then argmax",
        "mask accuracy": "mean(gt == predicted) of each picture, pixels without class left out; mean over pictures",
        "mIoU": "from the pixels of all pictures together; classes that label maps and predictions both lack left out",
        "style": f"{metrics.STYLE_PROTOCOL}; both pictures in their own size",
        "LAB": "Euclidean distance of the three channels' means, and of their standard deviations; OpenCV's float LAB",
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


def describe_judge(judge: Judge) -> dict[str, str]:
    """What the protocol says of the judge, in words, by topic."""
    config, known = judge.config, [CLASSES[c] for c in judge.classes if c != NOTHING]
    groups = "; ".join(", ".join(group) for group in NEAR_CLASSES)
    return {
        "judge": f"{judge.file}, sha256 {judge.sha256}, on EfficientNet-{config.variant}; picture to "
                 f"{config.picture_width}x{config.picture_height}; predicts {', '.join(known)}, or nothing; pixels of "
                 f"other classes count as wrong; near classes: {groups}",
        "KID": "(x . y / D + 1)^3 over the judge's 1280 features, unbiased; interval from random halves; "
               "only with real photos, four at least",
        "sharpness": "mean absolute Laplacian of the grey levels at the label map's size",
    }


def _describe_classes(evaluator: Evaluator) -> str:
    """Which classes the segmenter was trained for."""
    count, known, names = len(evaluator.vocabulary), evaluator.known, evaluator.vocabulary.names
    if known is None:
        return f"{count} classes"
    mapped = f", mapped from {len(evaluator.classes)} of another set" if evaluator.classes else ""
    return f"{len(known.classes)} of {count} classes ({', '.join(names[c] for c in known.classes)}){mapped}"
