"""Training of the evaluator's SegFormer on photos and label maps; it never sees a generated picture."""
import contextlib
import functools
from dataclasses import dataclass, field

import numpy as np

from jiidm.config import Positive
from jiidm.data.labels import NO_CLASS, colorize
from jiidm.data.vocabulary import count_classes
from jiidm.evaluation.metrics import confusion, mask_accuracy, mean_iou
from jiidm.evaluation.segformer import Segformer, SegformerConfig, check_segformer, normalised, resize_bilinear
from jiidm.evaluation.weights import Known, load_segmenter_network, save_known, save_segmenter
from jiidm.system.distributed import all_reduce, shard
from jiidm.system.rng import rng_for
from jiidm.system.runtime import jt, nn
from jiidm.training.augmentation import AugmentedTrainingConfig, augmented
from jiidm.training.gradients import Learner, trainable
from jiidm.training.trainer import Losses, Trainer, train_on_folder


@dataclass(frozen=True)
class SegmenterTrainingConfig(AugmentedTrainingConfig):
    """Training of the segmenter on pictures of the network's size.

    Attributes:
        ignore: classes that the loss leaves out.
    """

    steps: Positive = 20_000
    learning_rate: float = 6e-4
    warmup: int = 500
    ignore: tuple[int, ...] = ()
    save_every: int = 1000
    sheet_every: int = 1000


@dataclass(frozen=True)
class SegmenterRun:
    """Everything that defines a training of the segmenter: the sections of its YAML file."""

    segmenter: SegformerConfig = field(default_factory=SegformerConfig)
    train_segmenter: SegmenterTrainingConfig = field(default_factory=SegmenterTrainingConfig)
    seed: int = 0


def describe_segmenter(path, folder, validation=None, ignore=()):
    """Finds out and writes the `Known` of a segmenter, beside its file.

    Args:
        path: the segmenter's file.
        folder: the `TrainingFolder` of its training.
        validation: a `TrainingFolder` of held-out photos to measure it on, in its own size, or None.
        ignore: the classes that its loss left out.

    Returns:
        The `Known`.

    Raises:
        InputError: for pictures that cannot be read, and when the file cannot be written.
    """
    network = load_segmenter_network(path)
    count, classes, matrix = network.config.num_classes, set(), 0
    for name in folder.names:
        classes.update(np.unique(folder.labels(name, count)).tolist())
    known = Known(tuple(sorted(classes - {NO_CLASS, *ignore})))
    if validation:
        for _, labels, predicted in predictions(network, validation, validation.names):
            matrix = matrix + confusion(labels, predicted, count)
    if np.any(matrix):  # held-out label maps may be without any class
        known = Known(known.classes, len(validation), float(mask_accuracy(matrix)), float(mean_iou(matrix)))
    save_known(path, known)
    return known


def predictions(network, folder, names):
    """Yields photo (H x W x 3 uint8), labels and predicted labels (H x W uint8) of each of `names` of a
    `TrainingFolder`, in the network's size; labels are NO_CLASS where there is none.
    """
    for name in names:
        photo, labels = folder.fitted(name, network.config.width, network.config.height, network.config.num_classes)
        with jt.no_grad():
            logits = resize_bilinear(network(jt.array(normalised(photo[None]))), *labels.shape)
        yield photo, labels, logits.argmax(1)[0].numpy()[0].astype(np.uint8)


class SegmenterTrainer(Trainer):
    """Trains `config.segmenter` (a `SegmenterRun`) on a `TrainingFolder`.

    The result has averaged weights in half precision; `describe_segmenter` writes segmenter.json beside it. With
    `validation`, segmenter-validation.csv has its mask accuracy and mIoU, and the sample grids show its photos.
    """

    stage, title = "segmenter", "the segmenter"
    columns = ("cross_entropy", "mask_accuracy")
    sections = ("segmenter", "train_segmenter")

    def __init__(self, config, *arguments):
        check_segformer(config.segmenter)
        super().__init__(config, *arguments)

    def build_networks(self):
        self.network = Segformer(self.config.segmenter)
        optimizer = jt.optim.AdamW(trainable(self.network), self.training.learning_rate,
                                   weight_decay=self.training.weight_decay)
        self.learners = [Learner("network", self.network, optimizer)]

    def count_classes(self):
        count = self.config.segmenter.num_classes
        self.vocabulary = count_classes(self.samples.label_maps(count), self._table, self.training.ignore)

    @property
    def _table(self):
        """The `ClassTable` of the labels."""
        return self.samples.reader(self.config.segmenter.num_classes).vocabulary.table

    def batch(self, step):
        indices, config = self.indices(step), self.config.segmenter
        photos, labels = [], []
        for place in range(len(indices))[shard(len(indices))]:
            pair = self.samples.fitted(self.samples.names[indices[place]], config.width, config.height,
                                       config.num_classes)
            photo, label = augmented(*pair, self.training, rng_for(self.config.seed, step, "augmentation", place))
            photos.append(photo)
            labels.append(label)
        labels = np.stack(labels)
        labels[np.isin(labels, self.training.ignore)] = NO_CLASS
        return normalised(np.stack(photos)), labels.astype(np.int32)

    def prepare(self, step, parts):
        labelled = sum(int((labels != NO_CLASS).sum()) for (*_, labels), _ in parts)
        self._labelled = max(1.0, float(all_reduce(np.array([labelled]))[0])) / self.training.batch  # pixels a photo

    def losses(self, step, part):
        """Means over the labelled pixels of the whole batch, whichever of its photos they are in."""
        *inputs, truth = (jt.array(each) for each in part)
        logits = resize_bilinear(self.logits(inputs), *truth.shape[1:])
        count = len(truth) * self._labelled
        loss = nn.cross_entropy_loss(logits, truth, ignore_index=NO_CLASS, reduction="sum") / count
        return Losses([loss], [loss, (logits.argmax(1)[0] == truth).float32().sum() / count])

    def logits(self, inputs):
        """N, classes, h, w of what `batch` returns before the labels."""
        return self.network(*inputs)

    def save_weights(self, path, step):
        save_segmenter(path, self.ema.arrays(), self.config.segmenter, step, vocabulary=self.vocabulary)

    def finish(self):
        note = f"trained on {len(self.samples)} photos of {self.samples.path.name}"
        save_segmenter(self.result, self.ema.arrays(), self.config.segmenter, self.training.steps, note,
                       vocabulary=self.vocabulary)
        describe_segmenter(self.result, self.samples, self.validation, self.training.ignore)

    def pictures(self, step):
        folder, shown = self.shown_names()
        rows, matrix = {"photo": [], "label map": [], "prediction": []}, 0
        with self._inference():
            for name in folder.names if self.validation else dict.fromkeys(shown):
                photo, labels, predicted = self.predict(folder, name)
                matrix = matrix + confusion(labels, predicted, len(self._table) + 1)
                if name in shown:
                    shown_row = photo, colorize(labels, self._table), colorize(predicted, self._table)
                    for row, picture in zip(rows.values(), shown_row, strict=True):
                        row.append(picture)
        if self.validation:
            self.log_quality("validation", step, **self.quality(matrix))
        return rows

    def predict(self, folder, name):
        """The photo `name` of a `TrainingFolder`, its labels and the predicted ones, by the averaged weights."""
        return next(predictions(self.network, folder, [name]))

    def quality(self, matrix):
        """What the table of the validation says of a confusion matrix, by name."""
        return {"mask_accuracy": float(mask_accuracy(matrix)), "mean_iou": float(mean_iou(matrix))}

    @contextlib.contextmanager
    def _inference(self):
        """Inside the block the network has averaged weights and its BatchNorm the running statistics."""
        norm = self.network.decode_head.batch_norm
        with self.ema.averaged():
            norm.is_train = False  # `eval()` would also stop the parameters' gradients
            yield
            norm.is_train = True


train_segmenter = functools.partial(train_on_folder, SegmenterTrainer)
