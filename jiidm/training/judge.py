"""Training of the judge's head on the features of a frozen network, which are computed once and kept on disk."""
import copy
import functools
import hashlib
import json
from dataclasses import dataclass, field, replace

import numpy as np
from tqdm import tqdm

from jiidm.config import Fraction, Positive, to_dict
from jiidm.data.classes import CONTEST
from jiidm.data.labels import CLASSES, NO_CLASS, resize_labels
from jiidm.data.pictures import from_pixels
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
from jiidm.evaluation.metrics import mask_accuracy
from jiidm.foreign.efficientnet import load_efficientnet
from jiidm.system.distributed import barrier, is_main_process, shard
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.rng import rng_for
from jiidm.system.runtime import jt
from jiidm.training.augmentation import AugmentedTrainingConfig, augmented, destroyed
from jiidm.training.gradients import Learner
from jiidm.training.segmenter import SegmenterTrainer
from jiidm.training.trainer import Trainer, train_on_folder


@dataclass(frozen=True)
class JudgeTrainingConfig(AugmentedTrainingConfig):
    """Training of the head.

    Attributes:
        variants: how often features of each photo are computed: as it is, augmented, and with its texture destroyed
            (every even one). A pass over the photos uses one of each.
        least_maps: a class in fewer label maps is left out, and never predicted.
    """

    steps: Positive = 1700
    batch: Positive = 16
    learning_rate: float = 2e-3
    warmup: int = 70
    ema: Fraction = 0.0
    weight_decay: float = 0.02
    scale_least: float = 0.8
    scale_most: float = 1.3
    jitter: float = 0.35
    hue: float = 0.04
    variants: Positive = 3
    least_maps: Positive = 10
    save_every: int = 500
    sheet_every: int = 500


@dataclass(frozen=True)
class JudgeRun:
    """Everything that defines a training of the judge: the sections of its YAML file."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    train_judge: JudgeTrainingConfig = field(default_factory=JudgeTrainingConfig)
    seed: int = 0


def by_hand(folder):
    """Returns a `TrainingFolder` with only those photos of `folder` whose label maps people made.

    Raises:
        InputError: `by_hand.txt`, the list of them, is empty or names an unknown one.
    """
    names = folder.by_hand()
    if names is None:
        return folder
    chosen = copy.copy(folder)
    chosen.names = names
    return chosen


class JudgeTrainer(SegmenterTrainer):
    """Trains the head of `config.judge` (a `JudgeRun`) on the stored features of a `TrainingFolder`.

    Only photos with hand-made label maps take part: those that `by_hand.txt` lists, or all where there is no such file.
    The run's folder also receives features/ (about 1 GB for each thousand photos), which a later training of the same
    photos and network uses again. With `validation`, judge-validation.csv has the mask accuracy, exact and with near
    classes as one.
    """

    stage, title = "judge", "the judge"
    sections = ("judge", "train_judge")
    _table = CONTEST

    def __init__(self, config, samples, run, validation=None, tensorboard=False):
        check_judge(config.judge)
        Trainer.__init__(self, config, by_hand(samples), run, validation and by_hand(validation), tensorboard)
        self.frozen = load_efficientnet(config.judge.variant)

    def build_networks(self):
        features = self.run / "features"
        if is_main_process():
            _store_features(self.config, self.frozen, self.samples, features)
        barrier()  # all of them read what the main process has written
        taps = self.config.judge.taps
        self.features = [np.load(features / f"stage-{tap}.npy", mmap_mode="r") for tap in taps]
        self.labels = np.load(features / "labels.npy")
        self.classes = _known_classes(self.labels, self.training.least_maps)
        self.output_of = np.full(256, NO_CLASS, np.int32)  # by class: the number of the head's output
        self.output_of[self.classes] = np.arange(len(self.classes))
        self.network = JudgeHead(self.config.judge, len(self.classes))
        with np.load(features / "statistics.npz") as statistics:
            _standardise(self.network, statistics["means"], statistics["stds"])
        optimizer = jt.optim.AdamW(self.network.parameters(), self.training.learning_rate,
                                   weight_decay=self.training.weight_decay)
        self.learners = [Learner("network", self.network, optimizer)]
        self.judge = Judge(self.config.judge, self.classes, self.network)

    def count_classes(self):
        """Nothing: the judge's file has its own list of classes."""

    def batch(self, step):
        indices = self.indices(step)
        indices = indices[shard(len(indices))]
        variants = (indices + step * self.training.batch // len(self.samples)) % self.training.variants
        return (*(store[variants, indices].astype(np.float32) for store in self.features),
                self.output_of[self.labels[variants, indices]])

    def logits(self, inputs):
        return self.network(inputs)

    def predict(self, folder, name):
        photo, labels = folder.fitted(name, self.config.judge.picture_width, self.config.judge.picture_height)
        (predicted,), _ = self.judge.judge([photo])
        return photo, labels, predicted

    def quality(self, matrix):
        return {"mask_accuracy": float(mask_accuracy(matrix)),
                "near_classes": float(mask_accuracy(merge_near_classes(matrix)))}

    def _inference(self):
        return self.ema.averaged()

    def save_weights(self, path, step):
        save_judge(path, self.ema.arrays(), self.config.judge, self.classes,
                   f"trained on {len(self.samples)} photos of {self.samples.path.name}")

    def finish(self):
        self.save_weights(self.result, self.training.steps)


def _known_classes(labels, least):
    """The classes that `least` or more of the label maps (variants x N x h x w) have, and `NOTHING`."""
    counts = np.array([(labels[0] == c).any((1, 2)).sum() for c in range(len(CLASSES))])
    found = np.flatnonzero(counts >= least).tolist()
    if len(found) < 2:
        raise InputError(f"train_judge.least_maps {least}: {len(found)} classes are in so many label maps; expected 2 "
                         f"at least")
    return [*found, NOTHING]


def _standardise(head, means, stds):
    """Makes the lateral convolutions see features of mean 0 and std 1, by their start alone."""
    for lateral, mean, std in zip(head.lateral, means, stds, strict=True):
        channels = lateral.weight.shape[1]
        mean, std = mean[:channels].astype(np.float32), std[:channels].astype(np.float32)
        weight = lateral.weight.numpy() / std[None, :, None, None]
        lateral.weight.assign(jt.array(weight))
        lateral.bias.assign(jt.array(lateral.bias.numpy() - weight[:, :, 0, 0] @ mean))


# ------------------------------------------------------------------------------------------------------------ features

def _store_features(config, network, folder, path):
    """Writes the features of all variants of the photos into `path`, unless an earlier training has.

    Of each tap, variants x N x C x h x w float16; variants x N x h x w uint8 labels at the finest scale; mean and std
    of each scale's channels; and key.json, what all of this depends on.
    """
    content = hashlib.sha256()
    for name in folder.names:
        for file in folder.paths(name):
            content.update(hashlib.sha256(file.read_bytes()).digest())
    augmentation = {key: getattr(config.train_judge, key)
                    for key in ("variants", "scale_least", "scale_most", "jitter", "hue")}
    judge = to_dict(replace(config.judge, width=0))  # the head's width changes no feature
    key = json.dumps({**judge, **augmentation, "seed": config.seed, "content": content.hexdigest()}, sort_keys=True)
    key_file = output_folder(path) / "key.json"
    if key_file.exists() and key_file.read_text("utf-8") == key:
        return
    key_file.unlink(missing_ok=True)
    _compute_features(config, network, folder, path)
    with written_whole(key_file) as temporary:
        temporary.write_text(key, "utf-8")


def _compute_features(config, network, folder, path):
    variants, taps, count = config.train_judge.variants, config.judge.taps, len(folder)
    stores, kept = None, []
    sums = np.zeros((2, len(taps), max(network.channels)))
    with tqdm(total=variants * count, desc="features", unit="photo", mininterval=1) as bar:
        for variant in range(variants):
            for start in range(0, count, BATCH):
                pairs = [_variant(config, folder, i, variant) for i in range(start, min(start + BATCH, count))]
                with jt.no_grad():
                    found = network.features(jt.array(from_pixels(np.stack([photo for photo, _ in pairs]))), taps)
                found = [f.numpy() for f in found]
                if stores is None:
                    stores = [np.lib.format.open_memmap(path / f"stage-{tap}.npy", "w+", np.float16,
                                                        (variants, count, *f.shape[1:]))
                              for tap, f in zip(taps, found, strict=True)]
                height, width = found[0].shape[2:]
                kept += [resize_labels(labels, width, height) for _, labels in pairs]
                for place, (store, values) in enumerate(zip(stores, found, strict=True)):
                    store[variant, start:start + len(pairs)] = values
                    sums[0, place, :values.shape[1]] += values.mean((2, 3), dtype=np.float64).sum(0)
                    sums[1, place, :values.shape[1]] += (values.astype(np.float64) ** 2).mean((2, 3)).sum(0)
                bar.update(len(pairs))
    for store in stores:
        store.flush()
    sums /= variants * count
    np.savez(path / "statistics.npz", means=sums[0], stds=np.sqrt(np.maximum(sums[1] - sums[0] ** 2, 1e-6)))
    np.save(path / "labels.npy", np.stack(kept).reshape(variants, count, height, width))


def _variant(config, folder, index, variant):
    """A photo and its labels: as they are for variant 0, else augmented, and destroyed for every even one."""
    photo, labels = folder.fitted(folder.names[index], config.judge.picture_width, config.judge.picture_height)
    if variant == 0:
        return photo, labels
    rng = rng_for(config.seed, index, variant, "augmentation")
    photo, labels = augmented(photo, labels, config.train_judge, rng)
    return (photo, labels) if variant % 2 else destroyed(photo, labels, NOTHING, rng)


train_judge = functools.partial(train_on_folder, JudgeTrainer)
