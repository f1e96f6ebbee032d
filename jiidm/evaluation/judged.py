"""The measures of the judge over folders of pictures: what it recognises, KID, and sharpness."""
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jiidm.data.labels import CLASSES, read_label_map
from jiidm.data.pictures import read_photo, resize_photo
from jiidm.evaluation.judge import BATCH, NOTHING, merge_near_classes
from jiidm.evaluation.metrics import confusion, figure, mask_accuracy
from jiidm.evaluation.realism import FEWEST, kernel_distance, kernel_distances_of_halves, sharpness

# name in the files, words, whether more is better
JUDGED = {
    "judge": ("mask accuracy by the judge", True),
    "judge_near": ("mask accuracy by the judge, near classes as one", True),
    "judge_of_real": ("the same, divided by the real photos'", True),
    "KID": ("KID to the real photos", False),
    "sharpness": ("sharpness (mean absolute Laplacian)", True),
    "sharpness_of_real": ("sharpness, divided by the real photos'", True),
}


class Judged(NamedTuple):
    """The judge's numbers of one folder.

    Attributes:
        per_picture: arrays of each picture's numbers, by name of the measure.
        figures: `Figure`s over all pictures, by name.
        replicates: values of each figure over the same resamples in every folder, for intervals of differences.
    """

    per_picture: dict
    figures: dict
    replicates: dict


def judge_folders(judge, tasks, pictures, indices, halves=1000):
    """Measures folders of pictures with a `Judge`.

    Args:
        judge: the `Judge`.
        tasks: what was generated for; each has a `stem` and the path `labels`.
        pictures: {part: {stem: path}}; the part "real", photos of the same masks, is what KID and ratios refer to. KID
            takes four pictures at least.
        indices: resamples x tasks, the bootstrap's draws.
        halves: random halves for the interval of KID.

    Returns:
        {part: `Judged`}, with the measures of `JUDGED` (without "real" only those that need no photos).
    """
    raw = {part: _measure(judge, tasks, files, part) for part, files in pictures.items()}
    return {part: _judged(*found, raw.get("real"), indices, halves) for part, found in raw.items()}


def _measure(judge, tasks, files, part):
    """Returns the numbers of each picture by name, and N x 1280 features."""
    numbers, features = {"judge": [], "judge_near": [], "sharpness": []}, []
    for start in tqdm(range(0, len(tasks), BATCH), f"judge, {part}", unit="batch", mininterval=1):
        some = tasks[start:start + BATCH]
        shown = [read_photo(files[task.stem]) for task in some]
        truths = [read_label_map(task.labels, len(CLASSES), allow_no_class=True) for task in some]
        labels, pooled = judge.judge(shown, [truth.shape for truth in truths])
        features.append(pooled)
        for picture, truth, predicted in zip(shown, truths, labels, strict=True):
            matrix = confusion(truth, predicted, NOTHING + 1)
            numbers["judge"].append(mask_accuracy(matrix))
            numbers["judge_near"].append(mask_accuracy(merge_near_classes(matrix)))
            # at the label map's size: sharpness of another size is another number
            numbers["sharpness"].append(sharpness(resize_photo(picture, *truth.shape[::-1])))
    return {name: np.array(values) for name, values in numbers.items()}, np.concatenate(features)


def _judged(numbers, features, real, indices, halves):
    """Returns the `Judged` of one folder; `real` is what `_measure` gave for the real photos, or None."""
    values = {name: np.nanmean(each) for name, each in numbers.items()}
    replicates = {name: np.nanmean(each[indices], 1) for name, each in numbers.items()}
    if real is not None:
        photos, photo_features = real
        for name, of in (("judge_of_real", "judge_near"), ("sharpness_of_real", "sharpness")):
            values[name] = values[of] / max(np.nanmean(photos[of]), 1e-9)
            replicates[name] = replicates[of] / np.maximum(np.nanmean(photos[of][indices], 1), 1e-9)
        if len(features) >= FEWEST:
            values["KID"] = kernel_distance(features, photo_features)
            replicates["KID"] = kernel_distances_of_halves(features, photo_features, halves)
            replicates["KID"] += values["KID"] - replicates["KID"].mean()
    figures = {name: figure(values[name], replicates[name]) for name in JUDGED if name in values}
    return Judged(numbers, figures, replicates)
