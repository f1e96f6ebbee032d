"""Training of GauGAN and CLADE on photos and label maps: generator and style encoder against the discriminator."""
import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm.baselines.config import check_run
from jiidm.baselines.cost import multiplications, parameter_count
from jiidm.baselines.discriminator import MultiscaleDiscriminator
from jiidm.baselines.encoder import style_input
from jiidm.baselines.layers import batch_norms, normalise_by_batch, power_iteration, take_statistics
from jiidm.baselines.losses import discriminator_loss, feature_matching, generator_loss, style_divergence
from jiidm.baselines.networks import Baseline, layout_arrays, layout_of, save_baseline
from jiidm.baselines.perceptual import SMALLEST, VGGLoss
from jiidm.baselines.sharing import SharedMoments
from jiidm.checkpoint import load_into
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import colorize
from jiidm.data.pictures import from_pixels, sheet_of, to_pixels
from jiidm.data.views import draw_views, load_pairs, whole_view
from jiidm.system.distributed import all_reduce, barrier, is_main_process, shard, world_size
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.runtime import announce_compilation, jt, use_device
from jiidm.training.claim import claimed
from jiidm.training.ema import EMA
from jiidm.training.gradients import Gradients
from jiidm.training.loop import train_loop
from jiidm.training.plan import measured
from jiidm.training.saved import saved_states
from jiidm.training.state import TrainingState, batch_indices, step_generator
from jiidm.training.watch import Watch

VIEWS, STYLES = 1, 2  # purposes of random numbers
SHEET_PICTURES = 6
_STAGE = "generator"
_CONVERGED = 20  # steps of the power iteration after which the singular value no longer changes


def train_baseline(config, data, run, validation=None, resume=None, device="auto", events=None):
    """Trains the baseline of a `BaselineRun` on the folder `data` (imgs/, labels/) in the folder `run`.

    `run` receives generator.csv, states to go on from, sheets (of the photos of the folder `validation` where there is
    one), generator-latest.safetensors and at the end `weights/gaugan.safetensors` or `weights/clade.safetensors`:
    averaged weights in half precision. resume: as for `TrainingState.resume`. events: a folder for TensorBoard.
    Raises InputError for folders or numbers that are wrong, and where `run` holds such a training without `resume`.
    """
    folder, shown = _checked(config, data, validation, device)
    if not resume and output_folder(run) and (saved_states(run, _STAGE) or _final(run, config).exists()):
        raise InputError(f"{run}: holds a training of a generator; add --resume to go on, or choose another folder")
    output_folder(_final(run, config).parent)
    claim = claimed(run) if is_main_process() else contextlib.nullcontext()
    with claim, announce_compilation(f"the training of {config.generator.model}"):
        BaselineTrainer(config, folder, run, shown, events).fit(resume)
        barrier()  # an end of any process ends the first one's writing


def describe_training(config, data, device="auto"):
    """Lines that say what the networks of a `BaselineRun` are and cost, and what their training on the folder `data`
    takes on this machine."""
    folder, _ = _checked(config, data, None, device)
    image, generator, network = config.image, config.generator, Baseline(config)
    adversary = MultiscaleDiscriminator(config.discriminator, generator.num_classes)
    labels = np.zeros((1, image.height, image.width), np.uint8)
    layout = layout_of(*layout_arrays(labels, generator), generator)
    styles = jt.zeros((1, 3, generator.style_size, generator.style_size))
    pictures = jt.zeros((1, 3, image.height, image.width))
    costs = ((generator.model, network, lambda: network(layout, styles)),
             ("discriminator", adversary, lambda: adversary(layout.mask, pictures)))
    training = config.train_generator
    lines = [f"{len(folder)} photos in {folder.path}, {image.width}x{image.height}, {training.steps} steps of "
             f"{training.batch}"]
    for name, module, run in costs:
        lines.append(f"{name}: {parameter_count(module):,} parameters, {multiplications(module, run) / 1e9:.2f} G "
                     f"multiplications a picture forward (the papers' count: lookups are free)")
    seconds, memory = measured(BaselineTrainer(config, folder, Path("/")), training.steps - 1)  # writes nothing
    return [*lines, f"memory: {memory / 1e9:.2f} GB, measured",
            f"time: {seconds:.2f} s a step, measured; {seconds * training.steps / 3600:.2f} hours"]


def _checked(config, data, validation, device):
    check_run(config)
    if config.train_generator.batch < world_size():
        raise InputError(f"train_generator.batch {config.train_generator.batch}: expected a sample for each of the "
                         f"{world_size()} processes")
    if config.train_generator.perceptual_weight and min(config.image.width, config.image.height) < SMALLEST:
        raise InputError(f"image {config.image.width}x{config.image.height}: VGG-19 needs {SMALLEST} pixels a side")
    use_device(device)
    return TrainingFolder(data), TrainingFolder(validation) if validation else None


def _final(run, config):
    return run / "weights" / f"{config.generator.model}.safetensors"


def _trained(prefix, module):
    """Names and parameters of a module that an optimiser changes."""
    return {f"{prefix}{name}": p for name, p in module.named_parameters() if not p.is_stop_grad()}


class BaselineTrainer:
    """Trains the networks of `config` (a `BaselineRun`) on a `TrainingFolder`, in the folder `run`.

    For `train_loop`; see there for what the methods do. Both losses come from one pass of the networks.
    """

    columns, keep = ("feature_matching", "generator", "discriminator", "divergence", "perceptual"), ()

    def __init__(self, config, folder, run, shown=None, events=None):
        self.config, self.folder, self.run, self.events = config, folder, run, events
        self.training = config.train_generator
        self.shown = shown or folder
        self.perceptual = VGGLoss.from_file(self.training.perceptual_file) if self.training.perceptual_weight else None
        jt.set_global_seed(config.seed, False)
        self.network = Baseline(config)
        self.discriminator = MultiscaleDiscriminator(config.discriminator, config.generator.num_classes)
        self.shared = SharedMoments() if world_size() > 1 else None
        normalise_by_batch(self.network, True, self.shared)
        self.ema = EMA(self.network, self.training.ema)
        own, others = _trained("", self.network), _trained("discriminator.", self.discriminator)
        self._names = list(own), list(others)
        rate = self.training.learning_rate
        self.optimizer, self.adversary = (
            jt.optim.Adam(list(each.values()), rate, betas=(0.0, 0.9)) for each in (own, others))
        self.watch = Watch(self.training.loss_limit, self.training.skip_bad_steps)
        sections = ("image", "generator", "discriminator", "train_generator")
        self.state = TrainingState(run, _STAGE, config, sections, self.watch)
        self.state.add_module("network", self.network)
        self.state.add_module("discriminator", self.discriminator)
        self.state.add_ema("ema", self.ema)
        self.state.add_optimizer("optimizer", self.optimizer)
        self.state.add_optimizer("adversary", self.adversary)

    def fit(self, resume=None):
        """Trains to the configured number of steps and writes the averaged weights."""
        for module in (self.network, self.discriminator):  # a resumed state replaces what this finds
            power_iteration(module, _CONVERGED)
        train_loop(self, resume)
        if is_main_process():
            note = f"trained on {len(self.folder)} photos of {self.folder.path.name}"
            save_baseline(_final(self.run, self.config), self._averaged_arrays(self.training.steps), self.config,
                          self.training.steps, note)

    def _indices(self, step):
        return batch_indices(self.config.seed, step, self.training.batch, len(self.folder))

    def names(self, step):
        return [self.folder.names[i] for i in self._indices(step)]

    def batch(self, step):
        return self._batch(step, shard(self.training.batch))

    def _batch(self, step, own):
        """The slice `own` of the batch of a step."""
        image, indices = self.config.image, self._indices(step)
        # drawn for the whole batch: what a sample gets does not depend on the number of processes
        views = draw_views(step_generator(self.config.seed, step, VIEWS), len(indices), image.width, image.height,
                           image.height, image.width, self.training.scale)
        noise = step_generator(self.config.seed, step, STYLES).standard_normal(
            (len(indices), self.config.generator.style_channels), np.float32)
        return *self._arrays(self.folder, [self.folder.names[i] for i in indices[own]], views[own]), noise[own]

    def _arrays(self, folder, names, views):
        """Pictures, label maps, positions and the encoder's inputs of photos in their views."""
        generator = self.config.generator
        photos, labels = load_pairs(folder, names, views, generator.num_classes)
        return from_pixels(photos), *layout_arrays(labels, generator), style_input(photos, generator.style_size)

    def begin(self, step):
        for module in (self.network, self.discriminator):
            power_iteration(module)

    def compute(self, step, batch):
        photos, labels, positions, styles, noise = batch
        training, share = self.training, len(photos) / self.training.batch
        if self.shared is not None:
            self.shared.begin()
        layout = layout_of(labels, positions, self.config.generator)
        pictures, mean, log_variance = self.network(layout, jt.array(styles), jt.array(noise))
        photos = jt.array(photos)
        real, made = (self.discriminator(layout.mask, each) for each in (photos, pictures))
        matching, fooling = feature_matching(real, made), generator_loss(made)
        divergence = jt.zeros(1) if mean is None else style_divergence(mean, log_variance)
        perceptual = self.perceptual(photos, pictures) if self.perceptual else jt.zeros(1)
        loss = (fooling + training.feature_weight * matching + training.kl_weight * divergence
                + training.perceptual_weight * perceptual)
        judging = discriminator_loss(real, made)
        losses = [share * each for each in (matching, fooling, judging, divergence, perceptual)]
        own, others = (Gradients(names, optimizer) for names, optimizer in zip(
            self._names, (self.optimizer, self.adversary), strict=True))
        statistics = [v for norm in batch_norms(self.network) for v in norm.found]
        own.add(share * loss, [*losses, *statistics])
        others.add(share * judging)  # by the discriminator's parameters alone: the generator's do not take part
        for each in (own, others):
            each.complete()
        if self.shared is not None:
            self.shared.begin()  # lets go of the pass
        sums = all_reduce(np.array([each.item() for each in losses]))
        return dict(zip(self.columns, sums.tolist(), strict=True)), [own, others]

    def update(self, step, rate, gradients):
        own, others = gradients
        own.apply(rate)
        others.apply(rate * self.training.discriminator_learning_rate / self.training.learning_rate)
        take_statistics(self.network)
        self.ema.update(step)

    def save(self, step):
        save_baseline(self.run / "generator-latest.safetensors", self._averaged_arrays(step), self.config, step,
                      dtype="float32")

    def _averaged_arrays(self, step):
        return {name: p.numpy() for name, p in self._averaged(step).named_parameters()}

    def _averaged(self, step):
        """A `Baseline` with the averaged weights: singular values and statistics, which are not the averages of those
        that the weights had, are found anew, the latter on the batches before `step`.

        The first process is alone in this: it takes whole batches, and waits for no other.
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

    def sheet(self, step):
        """Label maps, photos, and pictures of the averaged network in the photo's style and in that of the next one."""
        places = np.linspace(0, len(self.shown) - 1, SHEET_PICTURES).astype(int)
        names, image = [self.shown.names[i] for i in places], self.config.image
        views = [whole_view(image.width, image.height)] * len(names)
        photos, labels, positions, styles = self._arrays(self.shown, names, views)
        network, layout = self._averaged(step), layout_of(labels, positions, self.config.generator)
        rows = [[colorize(each) for each in labels], to_pixels(photos)]
        for order in (styles, np.roll(styles, -1, 0)):
            with jt.no_grad():
                rows.append(to_pixels(network(layout, jt.array(order))[0].numpy()))
        sheet = sheet_of([list(row) for row in rows], ["label map", "photo", "its style", "the next one's style"])
        with written_whole(self.run / f"generator-{step:07d}.jpg") as path:
            Image.fromarray(sheet).save(path, quality=92)
        return sheet
