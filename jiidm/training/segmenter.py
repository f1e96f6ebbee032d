"""Training of the evaluator's SegFormer on photos and label maps; it never sees a generated picture."""
import contextlib
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from jiidm.config import load_config
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import NO_CLASS, colorize, fit_labels
from jiidm.data.pictures import fit_photo, sheet_of
from jiidm.evaluation.metrics import confusion, mask_accuracy, mean_iou
from jiidm.evaluation.segformer import Segformer, SegformerConfig, check_segformer, normalised, resize_bilinear
from jiidm.evaluation.weights import Known, load_segmenter_network, save_known, save_segmenter
from jiidm.system.distributed import all_reduce, barrier, is_main_process, shard
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import announce_compilation, jt, nn, use_device
from jiidm.training.claim import claimed
from jiidm.training.ema import EMA
from jiidm.training.gradients import Gradients, parts
from jiidm.training.loop import train_loop
from jiidm.training.saved import saved_states
from jiidm.training.state import TrainingState, batch_indices
from jiidm.training.table import Table
from jiidm.training.watch import Watch

AUGMENTATION = 5  # purpose of random numbers
SHEET_PICTURES = 8
_PADDING = 124  # grey around a picture that was made smaller


@dataclass(frozen=True)
class SegmenterTrainingConfig:
    """Training of the segmenter. A step takes `batch` pictures of the network's size.

    Augmentation: mirrored half of the time; scaled by `scale_least` to `scale_most` and cropped or padded to size;
    brightness, contrast and saturation changed by up to the share `jitter` and the hue by up to `hue` of the circle.
    The rate rises over `warmup` steps and falls as a half cosine from the share `decay_from` of the run on. `ignore`
    are classes left out of the loss. The rest is as in the other trainings.
    """

    steps: int = 20_000
    batch: int = 8
    learning_rate: float = 6e-4
    weight_decay: float = 0.01
    warmup: int = 500
    decay_from: float = 0.0
    ema: float = 0.999
    scale_least: float = 0.75
    scale_most: float = 1.75
    jitter: float = 0.4
    hue: float = 0.05
    ignore: tuple[int, ...] = ()
    save_every: int = 1000
    sheet_every: int = 1000
    keep_last: int = 2
    keep_every: int = 0
    loss_limit: float = 100.0
    skip_bad_steps: int = 0
    micro_batch: int = 0


@dataclass(frozen=True)
class SegmenterRun:
    """What a training of the segmenter is made of: its YAML file has these sections."""

    segmenter: SegformerConfig = field(default_factory=SegformerConfig)
    train_segmenter: SegmenterTrainingConfig = field(default_factory=SegmenterTrainingConfig)
    seed: int = 0


def load_segmenter_run(path):
    """Reads a `SegmenterRun` from the YAML file `path`; raises InputError that names the file and the key."""
    return load_config(path, SegmenterRun)


def train_segmenter(config, data, run, validation=None, resume=None, device="auto", events=None):
    """Trains the segmenter of a `SegmenterRun` on the folder `data` (imgs/, labels/) in the folder `run`.

    `run` receives segmenter.csv, states to go on from, sheets, `segmenter-latest.safetensors` and at the end
    `segmenter.safetensors`: averaged weights in half precision, with segmenter.json as `describe_segmenter` writes it.
    With the folder `validation` (imgs/, labels/ of held-out photos) segmenter-validation.csv has their mask accuracy
    and mIoU. resume: as for `TrainingState.resume`.
    events: a folder for TensorBoard. Raises InputError for folders or numbers that are wrong, and where `run` holds
    such a training without `resume`.
    """
    check_segformer(config.segmenter)
    _check_training(config)
    use_device(device)
    folder, held_out = TrainingFolder(data), TrainingFolder(validation) if validation else None
    output_folder(run)
    if not resume and (saved_states(run, "segmenter") or (run / "segmenter.safetensors").exists()):
        raise InputError(f"{run}: holds a training of the segmenter; add --resume to go on, or choose another folder")
    claim = claimed(run) if is_main_process() else contextlib.nullcontext()
    with claim, announce_compilation("the training of the segmenter"):
        SegmenterTrainer(config, folder, run, held_out, events).fit(resume)
    barrier()


def _check_training(config):
    training = config.train_segmenter
    if min(training.steps, training.batch, training.keep_last) < 1 or config.seed >= 2**32:
        raise InputError("train_segmenter: steps, batch and keep_last: expected at least 1; seed: less than 2**32")
    if not 0 < training.scale_least <= training.scale_most or training.jitter >= 1 or training.hue > 0.5:
        raise InputError("train_segmenter: expected 0 < scale_least <= scale_most, jitter below 1 and hue at most 0.5")


def augmented(photo, labels, training, random):
    """A photo (H x W x 3 uint8) and its labels (H x W), mirrored, scaled, cropped and recoloured, in the same size."""
    height, width = labels.shape
    if random.random() < 0.5:
        photo, labels = photo[:, ::-1], labels[:, ::-1]
    scale = np.exp(random.uniform(np.log(training.scale_least), np.log(training.scale_most)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    photo = cv2.resize(np.ascontiguousarray(photo), size, interpolation=cv2.INTER_LINEAR)
    labels = cv2.resize(np.ascontiguousarray(labels), size, interpolation=cv2.INTER_NEAREST)
    # where the window lies in the scaled picture, or the picture in the window
    y, x = (int(random.integers(min(0, side - new), max(0, side - new) + 1))
            for side, new in ((size[1], height), (size[0], width)))
    left, top, right, below = max(0, -x), max(0, -y), max(0, width - size[0]), max(0, height - size[1])
    photo = cv2.copyMakeBorder(photo, top, below - top, left, right - left, cv2.BORDER_CONSTANT, value=(_PADDING,) * 3)
    labels = cv2.copyMakeBorder(labels, top, below - top, left, right - left, cv2.BORDER_CONSTANT, value=NO_CLASS)
    y, x = max(0, y), max(0, x)
    return recolored(photo[y:y + height, x:x + width], training, random), labels[y:y + height, x:x + width]


def recolored(photo, training, random):
    """H x W x 3 uint8 with another brightness, contrast, saturation and hue."""
    brightness, contrast, saturation = 1 + training.jitter * random.uniform(-1, 1, 3)
    turn = 180 * training.hue * random.uniform(-1, 1)
    values = photo.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    hsv = cv2.cvtColor(np.clip(values, 0, 255).astype(np.uint8), cv2.COLOR_RGB2HSV).astype(np.float32)
    hsv[..., 0] = (hsv[..., 0] + turn) % 180
    hsv[..., 1] = np.clip(hsv[..., 1] * saturation, 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)


def describe_segmenter(path, folder, validation=None, ignore=()):
    """Finds out and writes the `Known` of the segmenter in the file `path`, beside it; returns it.

    `folder` is the `TrainingFolder` of its training, `ignore` the classes that its loss left out; `validation` is one
    of held-out photos, on which it is measured in its own size. Raises InputError for pictures that cannot be read,
    and where nothing can be written.
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
    """Gives (photo, labels, predicted labels) of each of `names` in the `TrainingFolder`, in the network's size.

    H x W x 3 uint8, and H x W uint8 twice; labels are NO_CLASS where there is none.
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


class SegmenterTrainer:
    """Trains `config.segmenter` (a `SegmenterRun`) on a `TrainingFolder`, in the folder `run`.

    For `train_loop`; see there for what the methods do.
    """

    columns, keep = ("cross_entropy", "mask_accuracy"), ()

    def __init__(self, config, folder, run, validation=None, events=None):
        self.config, self.folder, self.run, self.validation = config, folder, run, validation
        self.events = events
        self.training = config.train_segmenter
        jt.set_global_seed(config.seed, False)
        self.network = Segformer(config.segmenter)
        self.ema = EMA(self.network, self.training.ema)
        trained = [(name, p) for name, p in self.network.named_parameters() if not p.is_stop_grad()]
        self._names = [name for name, _ in trained]  # not the statistics of the BatchNorm, which are not optimised
        self.optimizer = jt.optim.AdamW(
            [p for _, p in trained], self.training.learning_rate, weight_decay=self.training.weight_decay
        )
        self.watch = Watch(self.training.loss_limit, self.training.skip_bad_steps)
        self.state = TrainingState(run, "segmenter", config, ("segmenter", "train_segmenter"), self.watch)
        self.state.add_module("network", self.network)
        self.state.add_ema("ema", self.ema)
        self.state.add_optimizer("optimizer", self.optimizer)

    def fit(self, resume=None):
        """Trains to the configured number of steps and writes `segmenter.safetensors` and what is known of it."""
        train_loop(self, resume)
        if is_main_process():
            note = f"trained on {len(self.folder)} photos of {self.folder.path.name}"
            path = self.run / "segmenter.safetensors"
            save_segmenter(path, self.ema.arrays(), self.config.segmenter, self.training.steps, note)
            describe_segmenter(path, self.folder, self.validation, self.training.ignore)

    def _indices(self, step):
        return batch_indices(self.config.seed, step, self.training.batch, len(self.folder))

    def names(self, step):
        return [self.folder.names[i] for i in self._indices(step)]

    def batch(self, step):
        indices = self._indices(step)
        photos, labels = [], []
        for place in range(*shard(len(indices)).indices(len(indices))):
            random = np.random.Generator(np.random.PCG64([self.config.seed, step, AUGMENTATION, place]))
            pair = _pair(self.folder, self.folder.names[indices[place]], self.config.segmenter)
            photo, label = augmented(*pair, self.training, random)
            photos.append(photo)
            labels.append(label)
        labels = np.stack(labels)
        labels[np.isin(labels, self.training.ignore)] = NO_CLASS
        return normalised(np.stack(photos)), labels.astype(np.int32)

    def begin(self, step):
        """Nothing is to be done before a step."""

    def compute(self, step, batch):
        photos, labels = batch
        gradients = Gradients(self._names, self.optimizer)
        known = max(1.0, float(all_reduce(np.array([(labels != NO_CLASS).sum()]))[0]))
        sums = np.zeros(2)
        for part, _ in parts(self.training.batch, self.training.micro_batch):
            truth = jt.array(labels[part])
            logits = resize_bilinear(self.network(jt.array(photos[part])), *labels.shape[1:])
            loss = nn.cross_entropy_loss(logits, truth, ignore_index=NO_CLASS, reduction="sum") / known
            right = (logits.argmax(1)[0] == truth).float32().sum() / known
            gradients.add(loss, [right])
            sums += loss.item(), right.item()
        gradients.complete()
        return dict(zip(self.columns, all_reduce(sums).tolist(), strict=True)), [gradients]

    def update(self, step, rate, gradients):
        gradients[0].apply(rate)
        self.ema.update(step)

    def save(self, step):
        save_segmenter(self.run / "segmenter-latest.safetensors", self.ema.arrays(), self.config.segmenter, step)

    def sheet(self, step):
        """Photos, label maps and predictions of the averaged network, as one picture that is returned; with held-out
        photos its figures on them."""
        folder = self.validation or self.folder
        names = folder.names if self.validation else [
            folder.names[i] for i in np.linspace(0, len(folder) - 1, SHEET_PICTURES).astype(int)]
        shown = set(np.linspace(0, len(names) - 1, SHEET_PICTURES).astype(int).tolist())
        rows, matrix = [], 0
        self.ema.swap()
        norm = self.network.decode_head.batch_norm
        norm.is_train = False  # `eval()` would also stop the parameters' gradients
        for i, (photo, labels, predicted) in enumerate(predictions(self.network, folder, names)):
            matrix = matrix + confusion(labels, predicted, self.config.segmenter.num_classes)
            if i in shown:
                rows.append([photo, colorize(labels), colorize(predicted)])
        norm.is_train = True
        self.ema.swap()
        if self.validation:
            columns = ["step", "mask_accuracy", "mean_iou"]
            with Table(self.run / "segmenter-validation.csv", columns, step) as table:
                table.write(step=step, mask_accuracy=float(mask_accuracy(matrix)), mean_iou=float(mean_iou(matrix)))
        sheet = sheet_of(rows)
        with written_whole(self.run / f"segmenter-{step:07d}.jpg") as path:
            Image.fromarray(sheet).save(path, quality=92)
        return sheet
