"""Training of the judge's head on the features of a frozen network, which are computed once and kept on disk."""
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from jiidm.config import TrainingConfig, load_config, to_dict
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES, NO_CLASS, fit_labels, resize_labels
from jiidm.data.pictures import fit_photo, from_pixels
from jiidm.evaluation.judge import (
    BATCH,
    NOTHING,
    Judge,
    JudgeConfig,
    JudgeHead,
    check_judge,
    merge_near_classes,
    save_judge,
)
from jiidm.evaluation.metrics import confusion, mask_accuracy
from jiidm.foreign.efficientnet import load_efficientnet
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.rng import batch_indices
from jiidm.system.runtime import announce_compilation, jt, nn, use_device
from jiidm.training.log import Table
from jiidm.training.loop import learning_rate
from jiidm.training.segmenter import augmented

_AUGMENTATION = 7  # purpose of random numbers
_VISIBLE, _SURROUNDINGS = 4.0, 15  # grey levels, pixels


@dataclass(frozen=True)
class JudgeTrainingConfig:
    """Training of the head.

    Attributes:
        variants: how often features of each photo are computed: as it is, augmented, and with its texture destroyed
            (every even one). An epoch uses one of each photo.
        epochs: passes over the photos.
        batch: photos a step.
        learning_rate, weight_decay: of AdamW; the rate falls as a half cosine.
        least_maps: a class in fewer label maps is left out, and never predicted.
        scale_least, scale_most, jitter, hue: the augmentation, as in the segmenter's training.
    """

    variants: int = 3
    epochs: int = 12
    batch: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 0.02
    least_maps: int = 10
    scale_least: float = 0.8
    scale_most: float = 1.3
    jitter: float = 0.35
    hue: float = 0.04


@dataclass(frozen=True)
class JudgeRun:
    """What a training of the judge is made of: its YAML file has these sections."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    train_judge: JudgeTrainingConfig = field(default_factory=JudgeTrainingConfig)
    seed: int = 0


def load_judge_run(path):
    """Reads a `JudgeRun` from the YAML file `path`; raises InputError that names the file and the key."""
    return load_config(path, JudgeRun)


def train_judge(config, data, run, validation=None, device="auto"):
    """Trains the judge's head and writes `run/judge.safetensors`.

    Only photos with hand-made label maps take part: those that `by_hand.txt` lists, or all where there is no such file.
    `run/features/` keeps the features (about 1 GB for each thousand photos); a later training of the same photos and
    network uses them again. `run/judge.csv` has a line an epoch.

    Args:
        config: a `JudgeRun`.
        data: folder of photos and label maps.
        run: folder to write.
        validation: folder of held-out photos; None measures nothing.
        device: "auto", "cpu" or "cuda".

    Returns:
        The `Judge`.

    Raises:
        InputError: a folder or a number is wrong, the ImageNet weights are not installed, or `run` holds a judge.
    """
    check_judge(config.judge)
    training, run = config.train_judge, Path(run)
    if min(training.variants, training.epochs, training.batch) < 1:
        raise InputError("train_judge: variants, epochs and batch: expected at least 1")
    output_folder(run)
    path = run / "judge.safetensors"
    if path.exists():
        raise InputError(f"{path}: exists; choose another folder, or remove it")
    use_device(device)
    folder = TrainingFolder(data)
    with announce_compilation("the training of the judge"):
        features, labels, statistics = _features(config, folder, _by_hand(folder), run / "features")
        classes = _known_classes(labels, training.least_maps)
        judge = _trained(config, classes, features, labels, statistics, run,
                         TrainingFolder(validation) if validation else None)
    save_judge(path, judge.head, config.judge, classes, f"trained on {labels.shape[1]} photos of {folder.path.name}")
    return judge


def measure_judge(judge, folder):
    """Measures a `Judge` on the hand-made label maps of a `TrainingFolder`.

    Returns:
        30 x 30 confusion matrices, one for each photo, and the photos' names.
    """
    config, names, matrices = judge.config, _by_hand(folder), []
    for name in names:
        size = config.picture_width, config.picture_height
        photo, truth = fit_photo(folder.photo(name), *size), fit_labels(folder.labels(name), *size)
        (predicted,), _ = judge.judge([photo])
        matrices.append(confusion(truth, predicted, NOTHING + 1))
    return np.stack(matrices), names


def _by_hand(folder):
    """Returns the names of a `TrainingFolder` whose label maps people made, or all where it does not say."""
    return folder.by_hand() or folder.names


def _known_classes(labels, least):
    """Returns the classes that `least` or more of the label maps (variants x N x h x w) have."""
    counts = np.array([(labels[0] == c).any((1, 2)).sum() for c in range(len(CLASSES))])
    found = np.flatnonzero(counts >= least).tolist()
    if len(found) < 2:
        raise InputError(f"train_judge.least_maps {least}: {len(found)} classes are in so many label maps; expected 2 "
                         f"at least")
    return [*found, NOTHING]


# ------------------------------------------------------------------------------------------------------------ features

def _features(config, folder, names, path):
    """Computes the features of all variants of the photos, or takes those of an earlier training from `path`.

    Returns:
        A list of variants x N x C x h x w float16 (on disk), variants x N x h x w uint8 labels at the finest scale, and
        a list of (mean, std) of each scale's channels.
    """
    training = config.train_judge
    content = hashlib.sha256()
    for name in names:
        for file in folder.paths(name):
            content.update(hashlib.sha256(file.read_bytes()).digest())
    augmentation = {key: value for key, value in to_dict(training).items()
                    if key in ("variants", "scale_least", "scale_most", "jitter", "hue")}
    judge = {key: value for key, value in to_dict(config.judge).items() if key != "width"}
    key = json.dumps({**judge, **augmentation, "seed": config.seed, "content": content.hexdigest()}, sort_keys=True)
    key_file = path / "key.json"
    if not key_file.exists() or key_file.read_text("utf-8") != key:
        output_folder(path)
        key_file.unlink(missing_ok=True)
        _compute_features(config, folder, names, path)
        with written_whole(key_file) as temporary:
            temporary.write_text(key, "utf-8")
    features = [np.load(path / f"stage-{tap}.npy", mmap_mode="r") for tap in config.judge.taps]
    with np.load(path / "statistics.npz") as file:
        statistics = list(zip(file["means"], file["stds"], strict=True))
    statistics = [(mean[:f.shape[2]], std[:f.shape[2]]) for (mean, std), f in zip(statistics, features, strict=True)]
    return features, np.load(path / "labels.npy"), statistics


def _compute_features(config, folder, names, path):
    """Writes the features, labels and statistics that `_features` reads."""
    variants, taps = config.train_judge.variants, config.judge.taps
    network = load_efficientnet(config.judge.variant)
    stores, kept = None, []
    sums = np.zeros((2, len(taps), max(network.channels)))
    with tqdm(total=variants * len(names), desc="features", unit="photo", mininterval=1) as bar:
        for variant in range(variants):
            for start in range(0, len(names), BATCH):
                pairs = [_pair(config, folder, names[i], i, variant)
                         for i in range(start, min(start + BATCH, len(names)))]
                with jt.no_grad():
                    found = network.features(jt.array(from_pixels(np.stack([photo for photo, _ in pairs]))), taps)
                found = [f.numpy() for f in found]
                if stores is None:
                    shapes = [(variants, len(names), *f.shape[1:]) for f in found]
                    stores = [np.lib.format.open_memmap(path / f"stage-{tap}.npy", "w+", np.float16, shape)
                              for tap, shape in zip(taps, shapes, strict=True)]
                height, width = found[0].shape[2:]
                kept += [resize_labels(labels, width, height) for _, labels in pairs]
                for place, (store, values) in enumerate(zip(stores, found, strict=True)):
                    store[variant, start:start + len(pairs)] = values
                    sums[0, place, :values.shape[1]] += values.mean((2, 3), dtype=np.float64).sum(0)
                    sums[1, place, :values.shape[1]] += (values.astype(np.float64) ** 2).mean((2, 3)).sum(0)
                bar.update(len(pairs))
    for store in stores:
        store.flush()
    sums /= variants * len(names)
    np.savez(path / "statistics.npz", means=sums[0], stds=np.sqrt(np.maximum(sums[1] - sums[0] ** 2, 1e-6)))
    np.save(path / "labels.npy", np.stack(kept).reshape(variants, len(names), height, width))


def _pair(config, folder, name, index, variant):
    """Returns a photo and its labels at the judge's size: as they are for variant 0, else augmented, and destroyed for
    every even one."""
    size = config.judge.picture_width, config.judge.picture_height
    photo, labels = fit_photo(folder.photo(name), *size), fit_labels(folder.labels(name), *size)
    if variant == 0:
        return photo, labels
    rng = np.random.Generator(np.random.PCG64([config.seed, _AUGMENTATION, variant, index]))
    photo, labels = augmented(photo, labels, config.train_judge, rng)
    return (photo, labels) if variant % 2 else destroyed(photo, labels, rng)


def destroyed(photo, labels, rng):
    """Destroys the texture of a photo, in all of it or in some of its classes, so that nothing is left to recognise.

    One of: blur, blur under grain, each class in its mean colour, a smear that keeps edges, a mosaic, frosted glass. A
    pixel becomes `NOTHING` where its surroundings changed by more than `_VISIBLE` grey levels on average: a blurred
    sky is still a sky.

    Args:
        photo: H x W x 3 uint8.
        labels: H x W uint8.
        rng: random generator.

    Returns:
        The photo and the labels.
    """
    changed = _WAYS[int(rng.integers(len(_WAYS)))](photo, labels, rng)
    present = np.unique(labels)
    chosen = present if rng.random() < 0.5 else present[rng.random(len(present)) < 0.5]
    changed = np.where(np.isin(labels, chosen)[:, :, None], changed, photo)
    difference = np.abs(changed.astype(np.float32) - photo).mean(2)
    lost = (cv2.blur(difference, (_SURROUNDINGS, _SURROUNDINGS)) > _VISIBLE) & (labels != NO_CLASS)
    return changed, np.where(lost & np.isin(labels, chosen), np.uint8(NOTHING), labels)


def _blur(photo, labels, rng):
    return cv2.GaussianBlur(photo, (0, 0), float(np.exp(rng.uniform(np.log(1.3), np.log(8)))))


def _grain(photo, labels, rng):
    noise = rng.normal(0, rng.uniform(4, 20), (*labels.shape, 1))
    return np.clip(_blur(photo, labels, rng) + noise, 0, 255).astype(np.uint8)


def _flat(photo, labels, rng):
    picture = np.empty_like(photo)
    for c in np.unique(labels):
        picture[labels == c] = photo[labels == c].mean(0)
    return picture


def _smear(photo, labels, rng):
    for _ in range(2):
        photo = cv2.bilateralFilter(photo, 9, float(rng.uniform(40, 90)), 5)
    return photo


def _mosaic(photo, labels, rng):
    side = int(rng.integers(4, 11))
    small = cv2.resize(photo, (max(1, labels.shape[1] // side), max(1, labels.shape[0] // side)),
                       interpolation=cv2.INTER_AREA)
    return cv2.resize(small, labels.shape[::-1], interpolation=cv2.INTER_NEAREST)


def _frost(photo, labels, rng):
    rows, columns = np.mgrid[:labels.shape[0], :labels.shape[1]].astype(np.float32)
    reach = rng.uniform(3, 8)
    shift = rng.uniform(-reach, reach, (2, *labels.shape)).astype(np.float32)
    return cv2.remap(photo, columns + shift[0], rows + shift[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)


_WAYS = (_blur, _grain, _flat, _smear, _mosaic, _frost)


# ---------------------------------------------------------------------------------------------------------------- head

def _trained(config, classes, features, labels, statistics, run, validation):
    """Trains the head; returns the `Judge`."""
    training, count = config.train_judge, labels.shape[1]
    jt.set_global_seed(config.seed, False)
    head = JudgeHead(config.judge, len(classes))
    _standardise(head, statistics)
    judge = Judge(config.judge, classes, head)
    optimizer = jt.optim.AdamW(head.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    numbers = np.full(256, NO_CLASS, np.int32)  # from classes to the head's outputs
    numbers[list(classes)] = np.arange(len(classes))
    steps_an_epoch = max(1, count // training.batch)
    steps = training.epochs * steps_an_epoch
    schedule = TrainingConfig(steps, learning_rate=training.learning_rate, warmup=steps_an_epoch // 2, decay_from=0.0)
    columns = ["epoch", "cross_entropy", "accuracy", "validation", "validation_near"]
    with Table(run / "judge.csv", columns, 0) as table, tqdm(total=steps, desc="head", mininterval=1) as bar:
        sums = np.zeros(2)
        for step in range(steps):
            epoch = step // steps_an_epoch
            indices = np.sort(batch_indices(config.seed, step, training.batch, count))
            variants = (indices + epoch) % training.variants
            x = [jt.array(store[variants, indices].astype(np.float32)) for store in features]
            truth = jt.array(numbers[labels[variants, indices]])
            logits = head(x)
            loss = nn.cross_entropy_loss(logits, truth, ignore_index=NO_CLASS)
            optimizer.lr = learning_rate(schedule, step)
            optimizer.step(loss)
            jt.sync_all()  # else what is measured between two steps changes how their operations are fused
            known = truth != NO_CLASS
            right = ((logits.argmax(1)[0] == truth) & known).float32().sum() / known.float32().sum()
            sums += loss.item(), right.item()
            bar.update()
            if (step + 1) % steps_an_epoch == 0:
                exact, near = _validated(judge, validation) if validation and epoch % 3 == 2 else (np.nan, np.nan)
                means = sums / steps_an_epoch
                table.write(epoch=epoch + 1, cross_entropy=means[0], accuracy=means[1], validation=exact,
                            validation_near=near)
                sums[:] = 0
    return judge


def _standardise(head, statistics):
    """Makes the lateral convolutions see features of mean 0 and std 1, by their start alone."""
    for lateral, (mean, std) in zip(head.lateral, statistics, strict=True):
        weight = lateral.weight.numpy() / std[None, :, None, None].astype(np.float32)
        bias = lateral.bias.numpy() - (weight[:, :, 0, 0] @ mean.astype(np.float32))
        lateral.weight.assign(jt.array(weight))
        lateral.bias.assign(jt.array(bias))


def _validated(judge, folder):
    """Returns the mask accuracy over all pixels of held-out photos, exact and with near classes as one."""
    matrix = measure_judge(judge, folder)[0].sum(0)
    return float(mask_accuracy(matrix)), float(mask_accuracy(merge_near_classes(matrix)))
