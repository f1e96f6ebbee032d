"""The loop of every training: learning rate, progress bar, table, guard, saving, stopping."""
import contextlib
import signal
import sys
import time

import numpy as np
from tqdm import tqdm

from jiidm.data.loader import Loader
from jiidm.system.distributed import (
    all_reduce,
    barrier,
    broadcast_text,
    broadcast_vars,
    is_main_process,
    world_size,
)
from jiidm.system.errors import InputError, Stopped
from jiidm.system.runtime import jt
from jiidm.system.stopping import interruptible, time_is_up
from jiidm.training.gradients import first_nonfinite_output
from jiidm.training.log import EventWriter, Table

LOG_EVERY = 10
_SIGNALS = signal.SIGINT, signal.SIGTERM


def train_loop(trainer, source):
    """Trains to the last step.

    Args:
        trainer: a `Trainer` that is built.
        source: what to resume from, as for `TrainingState.resume`.

    Raises:
        InputError: at a bad step (see `Watch`); the last saved state is as it was.
        Stopped: after a signal, or at the end of the time; the state is saved.
    """
    training = trainer.training
    first = _first_step(trainer, source)
    progress = _Progress(trainer, first)
    with Loader(trainer.batch, first, training.steps) as batches, progress:
        for step in range(first, training.steps):
            _leave_if_stopped(trainer, step, saved=step == first or _is_saved(trainer, step))
            batch = next(batches)
            rate = learning_rate(training, step)
            trainer.begin(step)
            losses, gradients = trainer.compute(step, batch)
            fault = trainer.watch.fault(losses, gradients)
            if fault:
                _skip_or_stop(trainer, step, batch, fault)
            else:
                trainer.update(step, rate, gradients)
                progress.add({**losses, "gradient_norm": gradients[0].grad_norm})
            done = step + 1
            progress.show(done, rate)
            if _is_saved(trainer, done):
                _save(trainer, done)
            last = done == training.steps
            if is_main_process() and (last or (training.sheet_every and done % training.sheet_every == 0)):
                progress.writer.sample_grid(done, trainer.sample_grid(done))
            progress.restart()  # after the saving, so that its time is not taken for training
    jt.gc()


def learning_rate(training, step):
    """The learning rate of a `TrainingConfig` at a step: linear warm-up, constant, half cosine to 1 % of the peak."""
    rate, start = training.learning_rate, training.decay_from * training.steps
    if training.warmup:
        rate *= min(1.0, (step + 1) / training.warmup)
    if step > start:
        progress = (step - start) / max(1, training.steps - start)
        rate *= 0.01 + 0.99 * (0.5 + 0.5 * np.cos(np.pi * progress))
    return float(rate)


def _first_step(trainer, source):
    """Restores the state to go on from, or initialises the weights; returns the step."""
    state = trainer.state
    first = state.resume(source)
    if not first:
        trainer.initialize()
        broadcast_vars(state.variables.values())
    if source and is_main_process():
        print(f"jiidm: the training of {trainer.title} goes on from step {first}" if first else
              f"jiidm: {state.run}: no saved state of the {state.stage} yet; it starts from step 0",
              file=sys.stderr, flush=True)
    return first


def _is_saved(trainer, done):
    """Whether the state after `done` steps is to be saved."""
    every = trainer.training.save_every
    return done == trainer.training.steps or done in trainer.keep or bool(every and done % every == 0)


def _save(trainer, done):
    if is_main_process():
        trainer.save(done)
        trainer.state.save(done)


def _leave_if_stopped(trainer, step, saved):
    """Saves and raises `Stopped` when one of the processes has received a signal, or the main one's time is up; `step`
    steps are done."""
    received = None
    try:
        with interruptible():
            pass
    except Stopped as stop:
        received = stop.signal
    reasons = np.array([*(received == each for each in _SIGNALS), is_main_process() and time_is_up()], np.float32)
    if world_size() > 1:  # all of them at the same step
        reasons = all_reduce(reasons)
    if not reasons.any():
        return
    if not saved:
        _save(trainer, step)
    barrier()  # an end of any process would end the main process's writing
    number, by = next(((each, f"by {each.name}") for each, count in zip(_SIGNALS, reasons, strict=False) if count),
                      (0, "at the end of its --minutes"))
    raise Stopped(number, f"stopped {by} after step {step} of the {trainer.stage}, which is saved in {trainer.run}; "
                          f"the same command with --resume goes on")


def _skip_or_stop(trainer, step, batch, fault):
    """Reports a bad step; raises InputError when no more of them may be skipped."""
    files = ", ".join(trainer.names(step))
    tensor = _first_nonfinite_tensor(trainer, step, batch) or "none of the inputs, weights and layers' outputs"
    what = broadcast_text(f"step {step}: {fault}; first tensor that is not finite: {tensor}; batch: {files}")
    if not trainer.watch.may_skip():
        raise InputError(
            f"{trainer.run}: {trainer.stage}, {what}; nothing of this step is kept. Resume with a lower "
            f"learning_rate, without a broken file, or with skip_bad_steps"
        )
    if is_main_process():
        tqdm.write(f"jiidm: left out ({trainer.watch.skipped} of at most {trainer.watch.allowed}): {what}")


def _first_nonfinite_tensor(trainer, step, batch):
    """Where the first NaN or Inf of a step lies: in the batch, the weights, or a layer's output; None if nowhere."""
    own = next((f"input {i} of the batch" for i, array in enumerate(batch) if not np.isfinite(array).all()), "")
    if all_reduce(np.array([bool(own)])).any():  # in any process: what follows is done by all together
        return own or "an input of the batch, in another process"
    for name, variable in trainer.state.variables.items():
        if not np.isfinite(variable.numpy()).all():
            return name
    layer = first_nonfinite_output(trainer.network, lambda: trainer.compute(step, batch))
    return f"the output of {layer}" if layer else None


class _Progress(contextlib.AbstractContextManager):
    """Progress bar and table of a stage, kept by the main process."""

    def __init__(self, trainer, first):
        stage, training = trainer.stage, trainer.training
        self.training, self.names = training, (*trainer.columns, "gradient_norm")
        self.bar = tqdm(range(training.steps), stage, initial=first, unit="step", dynamic_ncols=True, mininterval=1,
                        disable=not is_main_process())
        columns = ["step", *self.names, "learning_rate", "samples_per_second"]
        self.table = Table(trainer.run / f"{stage}.csv", columns, first) if is_main_process() else None
        self.writer = EventWriter(trainer.events if is_main_process() else None, stage)
        self.written = True
        self.restart()

    def restart(self):
        """Begins new means and a new measurement of speed if a row has been written."""
        if self.written:
            self.sums, self.count, self.steps, self.written = dict.fromkeys(self.names, 0.0), 0, 0, False
            self.since = time.perf_counter()

    def add(self, losses):
        """Adds the losses of a step to the means."""
        for name, value in losses.items():
            self.sums[name] += value
        self.count += 1

    def show(self, done, rate):
        """Moves the bar to `done` steps; every so often writes the means since the last time."""
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
