"""A run on disk: one folder that holds everything that is needed to go on, and a table of how it went."""
import csv
import json
from pathlib import Path

import numpy as np

from jiidm.checkpoint import load_tensors, save_tensors
from jiidm.config import to_dict
from jiidm.files import InputError
from jiidm.runtime import jt


class TrainingState:
    """What a stage of training consists of besides its step number: named variables, saved and restored exactly.

    Batches, crops and noise are drawn from (seed, step), see `step_generator`; the step number is the random state.
    `sections` are the parts of the configuration that the stage depends on: a state resumes only with the same ones,
    learning rate and intervals apart.
    """

    def __init__(self, path, config, sections):
        self.path = Path(path)
        settings = to_dict(config)
        for section in settings.values():
            if isinstance(section, dict):
                for name in ("learning_rate", "save_every", "sheet_every"):
                    section.pop(name, None)
        self.fingerprint = json.dumps({name: settings[name] for name in (*sections, "seed")}, sort_keys=True)
        self.variables = {}
        self.optimizers = {}

    def add_module(self, name, module):
        """Includes the parameters of a module."""
        self.variables.update({f"{name}/{k}": p for k, p in module.named_parameters()})

    def add_ema(self, name, ema):
        """Includes the averages of an `EMA`."""
        self.variables.update({f"{name}/{k}": v for k, v in ema.average.items()})

    def add_optimizer(self, name, optimizer):
        """Includes the moments and the step count of a Jittor Adam optimiser."""
        self.optimizers[name] = optimizer
        for group in optimizer.param_groups:
            for i, (first, second) in enumerate(zip(group["m"], group["values"], strict=True)):
                self.variables.update({f"{name}/first/{i}": first, f"{name}/second/{i}": second})

    def save(self, step):
        """Writes the state after `step` steps."""
        counts = {name: optimizer.n_step for name, optimizer in self.optimizers.items()}
        metadata = {"step": str(step), "counts": json.dumps(counts), "config": self.fingerprint}
        save_tensors(self.path, {name: v.numpy() for name, v in self.variables.items()}, metadata)

    def load(self):
        """Restores the state and returns its step; raises InputError when it belongs to another configuration."""
        arrays, metadata = load_tensors(self.path)
        if metadata.get("config") != self.fingerprint:
            raise InputError(
                f"{self.path}: was made with another configuration; resume with that one or use a new run folder"
            )
        if arrays.keys() != self.variables.keys():
            raise InputError(f"{self.path}: holds other variables than this training has; use a new run folder")
        for name, variable in self.variables.items():
            variable.assign(jt.array(arrays[name]))
        for name, count in json.loads(metadata["counts"]).items():
            self.optimizers[name].n_step = count
        return int(metadata["step"])


class Table:
    """A CSV of one row per logged step, flushed at once; rows after the step to resume from are dropped."""

    def __init__(self, path, columns, resume_from):
        self.columns = columns
        rows = []
        if resume_from and Path(path).exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= resume_from]
        self.file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115 - open for the whole run
        self.writer = csv.DictWriter(self.file, columns)
        self.writer.writeheader()
        self.writer.writerows(rows)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.file.close()

    def write(self, **values):
        """Adds a row."""
        self.writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()})
        self.file.flush()


def step_generator(seed, step, purpose):
    """The random generator of one step for one purpose (a small integer)."""
    return np.random.Generator(np.random.PCG64([seed, step, purpose]))


def batch_indices(seed, step, batch, count):
    """Indices of the batch of `step`: an endless sequence of permutations of `count` items, cut into batches."""
    positions = np.arange(step * batch, (step + 1) * batch)
    orders = {}
    for epoch in np.unique(positions // count):
        orders[epoch] = np.random.Generator(np.random.PCG64([seed, int(epoch), 0x0DE7])).permutation(count)
    return np.array([orders[p // count][p % count] for p in positions])


def learning_rate(peak, step, steps, warmup, decay_from):
    """Linear warm-up, then constant; from the share `decay_from` of the run on a half cosine to 1 % of the peak."""
    rate = peak * min(1.0, (step + 1) / warmup) if warmup else peak
    if step > decay_from * steps:
        share = (step - decay_from * steps) / max(1, steps - decay_from * steps)
        rate *= 0.01 + 0.99 * (0.5 + 0.5 * np.cos(np.pi * share))
    return float(rate)
