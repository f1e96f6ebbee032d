"""The loop that both trainers share: learning rate, bar, table, guard, saving, stopping, resuming."""
import contextlib
import signal
import sys
import time

import numpy as np
from tqdm import tqdm

from jiidm.data.loader import Loader
from jiidm.system.distributed import all_reduce, barrier, broadcast_text, is_main_process, world_size
from jiidm.system.errors import InputError, Stopped
from jiidm.system.runtime import jt
from jiidm.system.stopping import interruptible
from jiidm.training.gradients import first_bad_output
from jiidm.training.state import learning_rate
from jiidm.training.table import Table
from jiidm.training.tensorboard import open_writer

LOG_EVERY = 10
_SIGNALS = signal.SIGINT, signal.SIGTERM


def train_loop(trainer, resume):
    """Runs a stage of training to its last step.

    The trainer has: `state`, a `TrainingState`, `watch` and `training`, its part of the configuration; `columns`, the
    names of its losses; `keep`, steps at which it must be saved. Its methods: `batch(step)` -> host data, called
    some steps ahead in threads; `begin(step)`; `compute(step, batch)` -> losses (names to floats) and a list of
    `Gradients`; `update(step, rate, gradients)` changes the weights; `save(step)` writes checkpoints, `sheet(step)` a
    picture, which it returns (H x W x 3 uint8); `events` is the folder of TensorBoard's files or None;
    `names(step)` lists the files of a batch; `network` is the one that is looked into after a fault.
    resume: as for `TrainingState.resume`. Raises InputError at a bad step (see `Watch`), with the last saved state as
    it was, and `Stopped` after a signal, with the state saved.
    """
    training, state = trainer.training, trainer.state
    first = state.resume(resume)
    if first and is_main_process():
        print(f"jiidm: the {state.stage} goes on from step {first}", file=sys.stderr, flush=True)
    progress = _Progress(trainer, first)
    with Loader(trainer.batch, first, training.steps) as batches, progress:
        for step in range(first, training.steps):
            _leave_if_stopped(trainer, step, saved=step == first or _saving(trainer, step))
            batch = next(batches)
            rate = learning_rate(training.learning_rate, step, training.steps, training.warmup, training.decay_from)
            trainer.begin(step)
            losses, gradients = trainer.compute(step, batch)
            fault = trainer.watch.fault(losses, gradients)
            if fault:
                _skip_or_stop(trainer, step, batch, fault)
            else:
                trainer.update(step, rate, gradients)
                progress.add({**losses, "gradient_norm": gradients[0].norm})
            done = step + 1
            progress.show(done, rate)
            if _saving(trainer, done):
                _save(trainer, done)
            last = done == training.steps
            if is_main_process() and (last or (training.sheet_every and done % training.sheet_every == 0)):
                progress.writer.sheet(done, trainer.sheet(done))
            progress.restart()  # after the saving, so that its time is not taken for training
    jt.gc()


def _saving(trainer, done):
    every = trainer.training.save_every
    return done == trainer.training.steps or done in trainer.keep or bool(every and done % every == 0)


def _save(trainer, done):
    if is_main_process():
        trainer.save(done)
        trainer.state.save(done)


def _leave_if_stopped(trainer, step, saved):
    """Saves and raises `Stopped` when a signal has come to one of the processes; `step` steps are done."""
    received = None
    try:
        with interruptible():
            pass
    except Stopped as stop:
        received = stop.signal
    signals = np.array([received == each for each in _SIGNALS], np.float32)
    if world_size() > 1:  # all of them at the same step
        signals = all_reduce(signals)
    if not signals.any():
        return
    if not saved:
        _save(trainer, step)
    barrier()  # an end of any process ends the first one's writing
    number = _SIGNALS[int(signals.argmax())]
    raise Stopped(number, f"stopped by {number.name} after step {step} of the {trainer.state.stage}, which is saved in "
                          f"{trainer.state.run}; the same command with --resume goes on")


def _skip_or_stop(trainer, step, batch, fault):
    """Reports a bad step; raises InputError when no more of them may be left out."""
    files = ", ".join(trainer.names(step))
    tensor = _first_bad_tensor(trainer, step, batch) or "none of the inputs, weights and layers' outputs"
    what = broadcast_text(f"step {step}: {fault}; first tensor that is not finite: {tensor}; batch: {files}")
    if not trainer.watch.may_skip():
        raise InputError(
            f"{trainer.state.run}: {trainer.state.stage}, {what}; nothing of this step is kept. Resume with a lower "
            f"learning_rate, without a broken file, or with skip_bad_steps"
        )
    if is_main_process():
        tqdm.write(f"jiidm: left out ({trainer.watch.skipped} of at most {trainer.watch.allowed}): {what}")


def _first_bad_tensor(trainer, step, batch):
    """Where the first NaN or Inf of a step lies: in the batch, the weights, or a layer's output."""
    arrays = batch if isinstance(batch, tuple) else (batch,)
    own = next((f"input {i} of the batch" for i, array in enumerate(arrays) if not np.isfinite(array).all()), "")
    if all_reduce(np.array([bool(own)])).any():  # in any process: what follows is done by all together
        return own or "an input of the batch, in another process"
    for name, variable in trainer.state.variables.items():
        if not np.isfinite(variable.numpy()).all():
            return name
    layer = first_bad_output(trainer.network, lambda: trainer.compute(step, batch))
    return f"the output of {layer}" if layer else None


class _Progress(contextlib.AbstractContextManager):
    """Bar and table of a stage, kept by the first process."""

    def __init__(self, trainer, first):
        stage, training = trainer.state.stage, trainer.training
        self.training, self.names = training, (*trainer.columns, "gradient_norm")
        self.bar = tqdm(range(training.steps), stage, initial=first, unit="step", dynamic_ncols=True, mininterval=1,
                        disable=not is_main_process())
        columns = ["step", *self.names, "learning_rate", "samples_per_second"]
        self.table = Table(trainer.state.run / f"{stage}.csv", columns, first) if is_main_process() else None
        self.writer = open_writer(trainer.events if is_main_process() else None, stage)
        self.written = True
        self.restart()

    def restart(self):
        """Begins a new mean and a new measurement of speed where a row has been written."""
        if self.written:
            self.sums, self.count, self.steps, self.written = dict.fromkeys(self.names, 0.0), 0, 0, False
            self.since = time.perf_counter()

    def add(self, losses):
        """Takes in the losses of a step."""
        for name, value in losses.items():
            self.sums[name] += value
        self.count += 1

    def show(self, done, rate):
        """Moves the bar to `done` steps and, every so often, writes the means since the last time."""
        self.bar.update()
        self.steps += 1
        if self.table is None or not (done % LOG_EVERY == 0 or done == self.training.steps):
            return
        means = {name: value / max(1, self.count) for name, value in self.sums.items()}
        speed = self.steps * self.training.batch / (time.perf_counter() - self.since)
        self.table.write(step=done, **means, learning_rate=rate, samples_per_second=speed)
        shown = {**means, "learning_rate": rate, "samples/s": speed}
        self.writer.scalars(done, shown)
        self.bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
        self.written = True

    def __exit__(self, *exception):
        self.bar.close()
        self.writer.close()
        if self.table is not None:
            self.table.__exit__(*exception)
