"""Training of GauGAN and CLADE on photos and label maps: generator and style encoder against the discriminator."""
import functools
from pathlib import Path

import numpy as np

from jiidm.baselines.config import check_run
from jiidm.baselines.cost import multiplications, parameter_count
from jiidm.baselines.discriminator import MultiscaleDiscriminator
from jiidm.baselines.encoder import style_input
from jiidm.baselines.layers import batch_norms, normalise_by_batch, power_iteration, take_statistics
from jiidm.baselines.losses import discriminator_loss, feature_matching, generator_loss, style_divergence
from jiidm.baselines.networks import Baseline, layout_arrays, layout_of, save_baseline
from jiidm.baselines.sync_batch_norm import SyncMoments
from jiidm.checkpoint import load_into
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import colorize
from jiidm.data.pictures import from_pixels, to_pixels
from jiidm.data.views import draw_views, load_pairs, whole_view
from jiidm.data.vocabulary import count_classes
from jiidm.models.vgg import SMALLEST
from jiidm.system.distributed import shard, world_size
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt, use_device
from jiidm.training.gradients import Learner, trainable
from jiidm.training.perceptual import VGGLoss
from jiidm.training.plan import measured
from jiidm.training.trainer import Losses, Trainer, train_on_folder

_CONVERGED = 20  # steps of the power iteration after which the singular value no longer changes


def describe_training(config, data, device="auto", reader=None):
    """Lines that say how large the networks of a `BaselineRun` are, and what their training on the folder `data`, whose
    label maps are read by `reader`, takes on this machine."""
    use_device(device)
    folder, training, image = TrainingFolder(data, reader), config.train_generator, config.image
    trainer = BaselineTrainer(config, folder, Path("/"))  # writes nothing
    seconds, memory = measured(trainer, training.steps - 1)
    layout = layout_of(*layout_arrays(np.zeros((1, image.height, image.width), np.uint8), config.generator),
                       config.generator)
    styles = jt.zeros((1, 3, config.generator.style_size, config.generator.style_size))
    pictures = jt.zeros((1, 3, image.height, image.width))
    normalise_by_batch(trainer.network, False)
    lines = [f"{len(folder)} photos in {folder.path}, {image.width}x{image.height}, {training.steps} steps of "
             f"{training.batch}"]
    for name, network, run in (
        (config.generator.model, trainer.network, lambda: trainer.network(layout, styles)),
        ("discriminator", trainer.discriminator, lambda: trainer.discriminator(layout.mask, pictures)),
    ):
        lines.append(f"{name}: {parameter_count(network):,} parameters, {multiplications(network, run) / 1e9:.2f} G "
                     f"multiplications a picture forward (the papers' count: lookups are free)")
    return [*lines, f"memory: {memory / 1e9:.2f} GB, measured",
            f"time: {seconds:.2f} s a step, measured; {seconds * training.steps / 3600:.2f} hours"]


class BaselineTrainer(Trainer):
    """Trains the networks of a `BaselineRun` on a `TrainingFolder`. Both losses come from one forward pass.

    The result, `weights/gaugan.safetensors` or `weights/clade.safetensors`, has averaged weights in half precision. The
    sample grids show the photos of `validation`, or some of the training's.
    """

    stage = "generator"
    columns = ("feature_matching", "generator", "discriminator", "divergence", "perceptual")
    sections = ("image", "generator", "discriminator", "train_generator")

    def __init__(self, config, *arguments):
        check_run(config)
        training, image = config.train_generator, config.image
        if training.batch < world_size():
            raise InputError(f"train_generator.batch {training.batch}: expected a sample for each of the "
                             f"{world_size()} processes")
        if training.perceptual_weight and min(image.width, image.height) < SMALLEST:
            raise InputError(f"image {image.width}x{image.height}: VGG-19 needs {SMALLEST} pixels a side")
        super().__init__(config, *arguments)

    @property
    def title(self):
        return self.config.generator.model

    @property
    def result(self):
        return self.run / "weights" / f"{self.title}.safetensors"

    def build_networks(self):
        training = self.training
        self.perceptual = VGGLoss.from_file(training.perceptual_file) if training.perceptual_weight else None
        self.network = Baseline(self.config)
        self.discriminator = MultiscaleDiscriminator(self.config.discriminator, self.config.generator.num_classes)
        self.sync = SyncMoments() if world_size() > 1 else None
        normalise_by_batch(self.network, True, self.sync)
        ratio = training.discriminator_learning_rate / training.learning_rate
        self.learners = [
            Learner(name, network, jt.optim.Adam(trainable(network), training.learning_rate, betas=(0.0, 0.9)), rate)
            for name, network, rate in (("network", self.network, 1.0), ("discriminator", self.discriminator, ratio))]

    @property
    def _table(self):
        """The `ClassTable` of the labels."""
        return self.samples.reader(self.config.generator.num_classes).vocabulary.table

    def count_classes(self):
        self.vocabulary = count_classes(self.samples.label_maps(self.config.generator.num_classes), self._table)

    def initialize(self):
        for network in (self.network, self.discriminator):
            power_iteration(network, _CONVERGED)

    def batch(self, step):
        return self._batch(step, shard(self.training.batch))

    def _batch(self, step, own):
        """The slice `own` of the batch of a step."""
        image, indices = self.config.image, self.indices(step)
        views = draw_views(self.rng(step, "crops"), len(indices), image.width, image.height, image.height, image.width,
                           self.training.scale)
        noise = self.rng(step, "styles").standard_normal((len(indices), self.config.generator.style_channels),
                                                         np.float32)
        return *self._arrays(self.samples, [self.samples.names[i] for i in indices[own]], views[own]), noise[own]

    def _arrays(self, folder, names, views):
        """Pictures, label maps, positions and the encoder's inputs of photos in their views."""
        generator = self.config.generator
        photos, labels = load_pairs(folder, names, views, generator.num_classes)
        return from_pixels(photos), *layout_arrays(labels, generator), style_input(photos, generator.style_size)

    def begin(self, step):
        for network in (self.network, self.discriminator):
            power_iteration(network)

    def losses(self, step, part):
        photos, labels, positions, styles, noise = part
        training, photos = self.training, jt.array(photos)
        layout = layout_of(labels, positions, self.config.generator)
        if self.sync is not None:
            self.sync.begin()
        pictures, mean, log_variance = self.network(layout, jt.array(styles), jt.array(noise))
        real, fake = (self.discriminator(layout.mask, each) for each in (photos, pictures))
        matching, generator, judged = feature_matching(real, fake), generator_loss(fake), discriminator_loss(real, fake)
        divergence = jt.zeros(1) if mean is None else style_divergence(mean, log_variance)
        perceptual = self.perceptual(photos, pictures) if self.perceptual else jt.zeros(1)
        total = (generator + training.feature_weight * matching + training.kl_weight * divergence
                 + training.perceptual_weight * perceptual)
        statistics = [v for norm in batch_norms(self.network) for v in norm.found]
        return Losses([total, judged], [matching, generator, judged, divergence, perceptual], statistics)

    def compute(self, step, batch):
        found = super().compute(step, batch)
        if self.sync is not None:
            self.sync.begin()  # frees the graph of the pass
        return found

    def update(self, step, rate, gradients):
        take_statistics(self.network)
        super().update(step, rate, gradients)

    def save_weights(self, path, step):
        self._save(path, step)

    def finish(self):
        self._save(self.result, self.training.steps, f"trained on {len(self.samples)} photos of "
                                                     f"{self.samples.path.name}", "float16")

    def _save(self, path, step, note="", dtype="float32"):
        arrays = {name: p.numpy() for name, p in self._averaged(step).named_parameters()}
        save_baseline(path, arrays, self.config, step, note, dtype, self.vocabulary and self.vocabulary.as_dict())

    def _averaged(self, step):
        """A `Baseline` with the averaged weights.

        Its singular values and statistics, which are not the averages of those that the weights had, are computed anew,
        the latter on the batches before `step`. The main process is alone in this and takes whole batches.
        """
        network = Baseline(self.config)
        load_into(network, self.ema.arrays(), "averaged weights")
        power_iteration(network, _CONVERGED)
        normalise_by_batch(network, True)
        for number in range(self.training.calibrate):
            _, labels, positions, styles, noise = self._batch(max(0, step - 1 - number), slice(None))
            layout = layout_of(labels, positions, self.config.generator)
            with jt.no_grad():
                network(layout, jt.array(styles), jt.array(noise))[0].sync()
            take_statistics(network, 1 / (number + 1))
        normalise_by_batch(network, False)
        return network

    def pictures(self, step):
        folder, names = self.shown_names()
        view = whole_view(self.config.image.width, self.config.image.height)
        photos, labels, positions, styles = self._arrays(folder, names, [view] * len(names))
        network, layout = self._averaged(step), layout_of(labels, positions, self.config.generator)

        def fakes(styles):
            with jt.no_grad():
                return to_pixels(network(layout, jt.array(styles))[0].numpy())

        return {"label map": [colorize(each, self._table) for each in labels], "photo": to_pixels(photos),
                "its style": fakes(styles), "the next one's style": fakes(np.roll(styles, -1, 0))}


train_baseline = functools.partial(train_on_folder, BaselineTrainer)
