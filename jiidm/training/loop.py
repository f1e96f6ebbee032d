"""The loop that both trainers share: learning rate, bar, table, saving, resuming."""
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from jiidm.files import InputError
from jiidm.runtime import jt
from jiidm.training.state import Table, learning_rate

LOG_EVERY = 10


def train_loop(stage, training, state, batch_of, step_of, save, sheet, columns, resume, keep=()):
    """Runs a stage of training to its last step.

    stage: its name, for the bar. training: its part of the configuration (steps, batch, learning_rate, warmup,
    decay_from, save_every, sheet_every). batch_of(step) -> host data, called one step ahead in a thread.
    step_of(step, batch, rate) -> dict of Vars to log, with the `columns`' names. save(step) writes checkpoints, also at
    the steps in `keep`, sheet(step) a picture. Raises InputError when a loss is no longer finite; the last saved state
    stays.
    """
    first = state.load() if resume and state.path.exists() else 0
    columns_of_table = ["step", *columns, "learning_rate", "samples_per_second"]
    sums, count, since = dict.fromkeys(columns, 0.0), 0, time.perf_counter()
    steps = range(first, training.steps)
    bar = tqdm(steps, stage, training.steps, initial=first, unit="step", dynamic_ncols=True, mininterval=1)
    with ThreadPoolExecutor(1) as worker, Table(state.path.with_name(f"{stage}.csv"), columns_of_table, first) as table:
        ahead = worker.submit(batch_of, first)
        for step in bar:
            batch = ahead.result()
            ahead = worker.submit(batch_of, step + 1)
            rate = learning_rate(training.learning_rate, step, training.steps, training.warmup, training.decay_from)
            losses = {name: float(value) for name, value in step_of(step, batch, rate).items()}
            bad = [name for name, value in losses.items() if not np.isfinite(value)]
            if bad:
                raise InputError(
                    f"{state.path}: {bad[0]} is not finite at step {step}; resume with a lower learning rate"
                )
            for name, value in losses.items():
                sums[name] += value
            count += 1
            done = step + 1
            if count == LOG_EVERY or done == training.steps:
                means = {name: value / count for name, value in sums.items()}
                speed = count * training.batch / (time.perf_counter() - since)
                table.write(step=done, **means, learning_rate=rate, samples_per_second=speed)
                shown = {**means, "learning_rate": rate, "samples/s": speed}
                bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items()})
            last = done == training.steps
            if last or done in keep or (training.save_every and done % training.save_every == 0):
                save(done)
                state.save(done)
            if last or (training.sheet_every and done % training.sheet_every == 0):
                sheet(done)
            if count == LOG_EVERY:  # after the saving, so that its time is not taken for training
                sums, count, since = dict.fromkeys(columns, 0.0), 0, time.perf_counter()
    jt.gc()
