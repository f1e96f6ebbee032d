"""Training of the evaluator's SegFormer on photos and label maps; it never sees a generated picture."""
import contextlib
from dataclasses import dataclass, field

import numpy as np

from jiidm.config import Positive
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES, NO_CLASS, colorize, fit_labels
from jiidm.data.pictures import fit_photo
from jiidm.evaluation.metrics import confusion, mask_accuracy, mean_iou
from jiidm.evaluation.segformer import Segformer, SegformerConfig, check_segformer, normalised, resize_bilinear
from jiidm.evaluation.weights import Known, load_segmenter_network, save_known, save_segmenter
from jiidm.system.distributed import all_reduce, shard
from jiidm.system.rng import rng_for
from jiidm.system.runtime import jt, nn, use_device
from jiidm.training.augmentation import AugmentedTrainingConfig, augmented
from jiidm.training.gradients import Learner, trainable
from jiidm.training.trainer import Losses, Trainer, run_stage


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


def train_segmenter(config, data, run, validation=None, resume=None, device="auto", tensorboard=False):
    """Trains the segmenter of a `SegmenterRun`.

    The run's folder receives segmenter.csv, states to resume from, sample grids, `segmenter-latest.safetensors` and at
    the end `segmenter.safetensors`: averaged weights in half precision, with segmenter.json as `describe_segmenter`
    writes it. With `validation`, segmenter-validation.csv has its mask accuracy and mIoU.

    Args:
        config: the `SegmenterRun`.
        data: folder of the training's imgs/ and labels/.
        run: folder to write into.
        validation: folder of held-out imgs/ and labels/, or None.
        resume: as for `run_stage`.
        device: "auto", "cpu" or "cuda".
        tensorboard: whether to write TensorBoard's files.

    Raises:
        InputError: for folders or values that are wrong, and as `run_stage` does.
    """
    check_segformer(config.segmenter)
    use_device(device)
    validation = TrainingFolder(validation) if validation else None
    run_stage(SegmenterTrainer(config, TrainingFolder(data), run, validation, tensorboard), resume)


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
        photo, labels = _pair(folder, name, network.config)
        with jt.no_grad():
            logits = resize_bilinear(network(jt.array(normalised(photo[None]))), *labels.shape)
        yield photo, labels, logits.argmax(1)[0].numpy()[0].astype(np.uint8)


def _pair(folder, name, config):
    """A photo and its labels as the network of `config` takes them."""
    size = config.width, config.height
    return fit_photo(folder.photo(name), *size), fit_labels(folder.labels(name, config.num_classes), *size)


class SegmenterTrainer(Trainer):
    """Trains `config.segmenter` (a `SegmenterRun`) on a `TrainingFolder`; without `validation` the sample grids show
    some photos of the training."""

    stage, title = "segmenter", "the segmenter"
    columns = ("cross_entropy", "mask_accuracy")
    sections = ("segmenter", "train_segmenter")

    def build_networks(self):
        self.network = Segformer(self.config.segmenter)
        optimizer = jt.optim.AdamW(trainable(self.network), self.training.learning_rate,
                                   weight_decay=self.training.weight_decay)
        self.learners = [Learner("network", self.network, optimizer)]

    def batch(self, step):
        indices = self.indices(step)
        photos, labels = [], []
        for place in range(len(indices))[shard(len(indices))]:
            pair = _pair(self.samples, self.samples.names[indices[place]], self.config.segmenter)
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
        save_segmenter(path, self.ema.arrays(), self.config.segmenter, step)

    def finish(self):
        note = f"trained on {len(self.samples)} photos of {self.samples.path.name}"
        save_segmenter(self.result, self.ema.arrays(), self.config.segmenter, self.training.steps, note)
        describe_segmenter(self.result, self.samples, self.validation, self.training.ignore)

    def pictures(self, step):
        folder, shown = self.shown_names()
        rows, matrix = {"photo": [], "label map": [], "prediction": []}, 0
        with self._inference():
            for name in folder.names if self.validation else dict.fromkeys(shown):
                photo, labels, predicted = self.predict(folder, name)
                matrix = matrix + confusion(labels, predicted, len(CLASSES) + 1)
                if name in shown:
                    for row, picture in zip(rows.values(), (photo, colorize(labels), colorize(predicted)), strict=True):
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
