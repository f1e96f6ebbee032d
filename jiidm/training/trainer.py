"""What all trainings share: `Trainer`, which each of them subclasses, and `run_stage`, which runs it."""
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from jiidm.config import check_training
from jiidm.data.folders import TrainingFolder
from jiidm.data.pictures import sheet_of
from jiidm.system.distributed import all_reduce, barrier, is_main_process
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole
from jiidm.system.rng import batch_indices, rng_for
from jiidm.system.runtime import announce_compilation, jt, use_device
from jiidm.system.stopping import interruptible
from jiidm.training.claim import claimed
from jiidm.training.ema import EMA
from jiidm.training.gradients import Gradients, micro_batches
from jiidm.training.log import Table
from jiidm.training.loop import train_loop
from jiidm.training.state import TrainingState, saved_states, state_path
from jiidm.training.watch import Watch

SAMPLES = 8  # pictures in a row of the sample grid


class Losses(NamedTuple):
    """What `Trainer.losses` returns, all of it means over the samples given.

    Attributes:
        objectives: what each learner minimises, in the order of `learners`; the last ones are left out while they do
            not learn yet.
        logged: the losses of the table, in the order of `columns`.
        outputs: further Vars that are needed afterwards, see `Trainer.outputs`.
    """

    objectives: list
    logged: list
    outputs: tuple = ()


class Trainer:
    """A training, to be run by `run_stage`.

    A subclass names its `stage`, `title`, `columns` and `sections` and writes `build_networks`, `batch`, `losses`,
    `pictures`, `save_weights` and, where there is something to do, `initialize`, `begin`, `prepare`, `update` and
    `finish`.

    Args:
        config: the configuration; its section "train_STAGE" is a `TrainingConfig`.
        samples: what batches are drawn from, such as a `TrainingFolder`; it has a length.
        run: the folder to write into.
        validation: a `TrainingFolder` of held-out photos for the sample grids; None takes those of the training.
        tensorboard: whether to write TensorBoard's files, into `run`/tensorboard.

    Raises:
        InputError: the section "train_STAGE" cannot be trained.

    Attributes:
        stage: prefix of the run's files.
        title: what messages call the networks.
        columns: names of the losses in the table; a jump of the first one is a bad step.
        sections: sections of the configuration that a continuation must have in common.
        keep: steps at which the weights are saved, whatever `save_every` says.
        network: the network whose averaged weights are saved.
        learners: the `Learner`s, that of `network` first.
        ema, watch, state: `EMA` of `network`, `Watch` and `TrainingState`; there after `build`.
        outputs: the `outputs` of the losses of a step, a tuple a micro-batch.
        vocabulary: what the weights are to say of their classes; counted when the training starts.
    """

    vocabulary = None
    stage = title = ""
    columns = sections = keep = ()

    def __init__(self, config, samples, run, validation=None, tensorboard=False):
        self.config, self.samples, self.run, self.validation = config, samples, Path(run), validation
        self.training = getattr(config, f"train_{self.stage}")
        check_training(config, f"train_{self.stage}")
        self.events = self.run / "tensorboard" if tensorboard else None

    # ------------------------------------------------------------------------------------ what a subclass writes

    @property
    def result(self):
        """The file of the finished training."""
        return self.run / f"{self.stage}.safetensors"

    def build_networks(self):
        """Sets `network` and `learners`; weights are random, from the run's seed."""
        raise NotImplementedError

    def initialize(self):
        """Sets the first weights where they are not random; not called when a state is resumed."""

    def batch(self, step):
        """This process's shard of a step's batch: a tuple of arrays. Called ahead, in threads; random numbers are drawn
        for the whole batch, so that they do not depend on the number of processes."""
        raise NotImplementedError

    def begin(self, step):
        """Changes what must change before a step is computed."""

    def prepare(self, step, parts):
        """Computes what the losses need of the whole batch; parts: a list of (micro-batch, weight)."""

    def losses(self, step, part):
        """The `Losses` of a micro-batch, which is a tuple of arrays as from `batch`."""
        raise NotImplementedError

    def pictures(self, step):
        """The rows of the sample grid, from the averaged weights: titles to lists of H x W x 3 uint8."""
        raise NotImplementedError

    def save_weights(self, path, step):
        """Writes the averaged weights after `step` steps as a checkpoint."""
        raise NotImplementedError

    def finish(self):
        """Writes `result` after the last step."""

    def count_classes(self):
        """Sets `vocabulary` by the label maps of the training; called at the start, in the main process."""

    # ------------------------------------------------------------------------------------ what all have in common

    def build(self):
        """Makes networks, optimisers, averages and state; returns the trainer."""
        jt.set_global_seed(self.config.seed, False)
        self.build_networks()
        for learner in self.learners:  # drawn now, in this order: not by what happens to use them first
            jt.sync(list(learner.network.parameters()))
        self.ema = EMA(self.network, self.training.ema)
        self.watch = Watch(self.training.loss_limit, self.training.skip_bad_steps)
        self.state = TrainingState(self.run, self.stage, self.config, self.sections, self.learners, self.ema,
                                   self.watch)
        return self

    def rng(self, step, name):
        """The random generator of a step for one purpose, such as "crops"."""
        return rng_for(self.config.seed, step, name)

    def indices(self, step):
        """Indices of the whole batch of a step."""
        return batch_indices(self.config.seed, step, self.training.batch, len(self.samples))

    def names(self, step):
        """The file names of a step's batch, for messages."""
        return [self.samples.photo_path(self.samples.names[i]).name for i in self.indices(step)]

    def shown_names(self):
        """The folder of the sample grid's photos, and the names of those that are shown."""
        folder = self.validation or self.samples
        return folder, [folder.names[i] for i in np.linspace(0, len(folder) - 1, SAMPLES).astype(int)]

    def compute(self, step, batch):
        """Computes losses (names to floats) and a list of `Gradients`, over all processes; changes no weight."""
        parts = [(tuple(array[part] for array in batch), weight)
                 for part, weight in micro_batches(self.training.batch, self.training.micro_batch)]
        self.prepare(step, parts)
        gradients, sums, self.outputs = [], 0, []
        for part, weight in parts:
            objectives, logged, outputs = self.losses(step, part)
            logged = [weight * loss for loss in logged]
            gradients = gradients or [Gradients(each) for each in self.learners[:len(objectives)]]
            for each, objective in zip(gradients, objectives, strict=True):
                each.accumulate(weight * objective, (*logged, *outputs))
            sums = sums + np.array([loss.item() for loss in logged])
            self.outputs.append(outputs)
        for each in gradients:
            each.all_reduce()
        return dict(zip(self.columns, all_reduce(sums).tolist(), strict=False)), gradients

    def update(self, step, rate, gradients):
        """Takes a step of the optimisers with the learning rate `rate`."""
        for each in gradients:
            each.apply(rate)
        self.ema.update(step)

    def save(self, step):
        """Writes the averaged weights so far as STAGE-latest.safetensors."""
        self.save_weights(self.run / f"{self.stage}-latest.safetensors", step)

    def sample_grid(self, step):
        """Writes `pictures` as STAGE-STEP.jpg; returns the grid, H x W x 3 uint8."""
        rows = self.pictures(step)
        grid = sheet_of([list(row) for row in rows.values()], list(rows))
        with written_whole(self.run / f"{self.stage}-{step:07d}.jpg") as path:
            Image.fromarray(grid).save(path, quality=92)
        return grid

    def log_quality(self, table, step, **values):
        """Appends a row to STAGE-TABLE.csv."""
        with Table(self.run / f"{self.stage}-{table}.csv", ("step", *values), step - 1) as rows:
            rows.write(step=step, **values)


def run_stage(trainer, resume=None):
    """Trains to the last step and writes the result; does nothing if the result is there and `resume` is "auto".

    Args:
        trainer: a `Trainer`, not built yet.
        resume: None for a new run; "auto" to go on from the newest whole state; else the step or the path of a state.

    Raises:
        InputError: when the run holds such a training and `resume` is None, when there is no run or state to resume,
            when another process trains in the folder, and at a bad step.
        Stopped: after a signal, or at the end of the time; the state is saved.
    """
    check_resume(trainer.run, resume)
    output_folder(trainer.result.parent)
    with claimed(trainer.run):
        state = named_state(trainer.run, trainer.stage, resume)
        is_new = not trainer.result.exists()
        check_new(trainer.run, trainer.stage, trainer.result, resume)
        barrier()  # all have looked before the main process writes
        if not is_new and state is None:
            return
        with announce_compilation(f"the training of {trainer.title}"):
            trainer.build()
            if is_main_process():  # it alone writes weights
                with interruptible():
                    trainer.count_classes()
            train_loop(trainer, state or resume)
            if is_main_process():
                with interruptible():
                    trainer.finish()
        barrier()  # an end of any process would end the main process's writing


def train_on_folder(trainer, config, data, run, validation=None, resume=None, device="auto", tensorboard=False,
                    reader=None):
    """Trains on a folder of photos and label maps.

    Args:
        trainer: the class of the `Trainer`.
        config: its configuration.
        data: folder of the training's imgs/ and labels/.
        run: folder to write into: the table STAGE.csv, states to resume from, sample grids, STAGE-latest.safetensors
            and, at the end, the trainer's `result`.
        validation: folder of held-out imgs/ and labels/, or None.
        resume: as for `run_stage`.
        device: "auto", "cpu" or "cuda".
        tensorboard: whether to write TensorBoard's files.
        reader: the `LabelReader` of the label maps. None: numbers of the contest's classes, or without names.

    Raises:
        InputError: for folders or values that are wrong, and as `run_stage` does.
    """
    use_device(device)
    validation = TrainingFolder(validation, reader) if validation else None
    run_stage(trainer(config, TrainingFolder(data, reader), run, validation, tensorboard), resume)


def check_resume(run, resume):
    """Raises InputError where `resume`, as of `run_stage`, is not possible for the folder `run`."""
    if resume and not Path(run).is_dir():
        raise InputError(f"{run}: no such run to resume; leave out --resume to start it")
    if resume and not re.fullmatch(r"auto|\d+|[a-z]+-state.*\.safetensors", Path(str(resume)).name):
        raise InputError(f"--resume {resume}: expected auto, the step of a state, or the path of one "
                         f"(STAGE-state-STEP.safetensors)")


def check_new(run, stage, result, resume):
    """Raises InputError where the folder `run` holds states or the result of a stage and `resume` is None."""
    found = next((path for path in (result, *(path for _, path in saved_states(run, stage))) if path.exists()), None)
    if found and not resume:
        raise InputError(f"{found}: exists already; add --resume to go on, or choose another run folder")


def named_state(run, stage, resume):
    """The path of the state that `resume`, as of `run_stage`, names; None for "auto" and None."""
    if not resume or resume == "auto":
        return None
    path = state_path(run, stage, int(resume)) if str(resume).isdigit() else Path(resume)
    if not path.name.startswith(f"{stage}-state"):
        raise InputError(f"--resume {resume}: is no state of the {stage}")
    if not path.is_file():
        steps = ", ".join(str(step) for step, _ in saved_states(run, stage)) or "none"
        raise InputError(f"{path}: no such state; the saved steps in {run} are: {steps}")
    return path
