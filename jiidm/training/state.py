"""A run on disk: everything that a stage of training needs to go on."""
import json
import sys

import numpy as np

from jiidm.checkpoint import Source
from jiidm.config import from_dict, to_dict
from jiidm.system.distributed import broadcast_numbers, broadcast_text, broadcast_vars, is_main_process
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt
from jiidm.training.saved import prune, read_state, saved_states, state_path, write_state

# what may differ between a run and its continuation: but for the learning rates none of it changes, beyond rounding,
# what a step computes
_FREE = ("learning_rate", "discriminator_learning_rate", "save_every", "sheet_every", "keep_last", "keep_every",
         "loss_limit", "skip_bad_steps", "micro_batch", "checkpoint_blocks", "precision")


class TrainingState:
    """What the stage `stage` of the training in the folder `run` consists of besides its step number: named variables
    and the losses that it watches, saved and restored exactly.

    Batches, crops and noise are drawn from (seed, step), see `step_generator`; the step number is the random state.
    `sections` are the parts of the configuration that the stage depends on: a state resumes only with the same ones,
    learning rates, intervals and what saves memory apart. `origin` is the `Source` of the first weights where they are
    another run's, None where they are random; after a resumption it is the one that the state was saved with.
    """

    def __init__(self, run, stage, config, sections, watch, origin=None):
        self.run, self.stage, self.watch, self.origin = run, stage, watch, origin
        self.kind, self.sections = type(config), (*sections, "seed")
        self.fingerprint = self._fingerprint(config)
        training = getattr(config, f"train_{stage}")
        self.keep_last, self.keep_every = training.keep_last, training.keep_every
        self.variables = {}
        self.optimizers = {}

    def add_module(self, name, module):
        """Includes the parameters of a module."""
        jt.sync(list(module.parameters()))  # drawn now, in this order: not by what happens to use them first
        self.variables.update({f"{name}/{k}": p for k, p in module.named_parameters()})

    def add_ema(self, name, ema):
        """Includes the averages of an `EMA`."""
        self.variables.update({f"{name}/{k}": v for k, v in ema.average.items()})

    def add_optimizer(self, name, optimizer):
        """Includes the moments and the step count of a Jittor Adam optimiser."""
        self.optimizers[name] = optimizer
        moments = (pair for group in optimizer.param_groups for pair in zip(group["m"], group["values"], strict=True))
        for i, (first, second) in enumerate(moments):
            self.variables.update({f"{name}/first/{i}": first, f"{name}/second/{i}": second})

    def save(self, step):
        """Writes the state after `step` steps and removes what `keep_last` and `keep_every` do not keep."""
        metadata = {"step": str(step), "counts": json.dumps(self._counts()), "config": self.fingerprint,
                    "watch": json.dumps(self.watch.state())}
        if self.origin:
            metadata["origin"] = json.dumps(to_dict(self.origin))
        write_state(state_path(self.run, self.stage, step), self.variables, metadata)
        prune(self.run, self.stage, self.keep_last, self.keep_every)

    def resume(self, source):
        """Restores a state and returns its step. source: the path of one, or its step as text; "auto" takes the newest
        that is whole, and step 0 where there is none; None is step 0.

        Newer states, left out as broken or gone back behind, are renamed to NAME.aside. Raises InputError when the
        state is unreadable or belongs to another configuration, and when there are states, but none is whole.
        With several processes the first one reads and the others receive.
        """
        step = self._load(source) if is_main_process() and source else 0
        step, *counts = broadcast_numbers([step, *self._counts().values()])
        for optimizer, count in zip(self.optimizers.values(), counts, strict=True):
            optimizer.n_step = count
        self.watch.restore(json.loads(broadcast_text(json.dumps(self.watch.state()))))
        broadcast_vars(self.variables.values())
        return step

    def _counts(self):
        return {name: optimizer.n_step for name, optimizer in self.optimizers.items()}

    def _fingerprint(self, config):
        """What must be the same in a run and its continuation, as text."""
        settings = to_dict(config)
        for section in settings.values():
            if isinstance(section, dict):
                for name in _FREE:
                    section.pop(name, None)
        return json.dumps({name: settings[name] for name in self.sections}, sort_keys=True)

    def _fits(self, fingerprint):
        """Whether a saved fingerprint is this one; keys that are younger than it count as their defaults."""
        try:
            return self._fingerprint(from_dict(self.kind, json.loads(fingerprint), "state")) == self.fingerprint
        except ValueError:  # no JSON, or a configuration of another make
            return False

    def _load(self, source):
        if source != "auto":
            path = state_path(self.run, self.stage, int(source)) if str(source).isdigit() else source
            tensors, metadata = read_state(path)
        else:
            states = [path for _, path in saved_states(self.run, self.stage)]
            if not states:
                return 0
            path, tensors, metadata = _newest_whole(states)
        if not self._fits(metadata.get("config", "")):
            raise InputError(f"{path}: was made with another configuration; resume with that one or use a new run "
                             f"folder")
        if tensors.keys() != self.variables.keys():
            raise InputError(f"{path}: holds other variables than this training has; use a new run folder")
        for name, variable in self.variables.items():
            variable.assign(jt.array(tensors[name].read()))
        for name, count in json.loads(metadata["counts"]).items():
            self.optimizers[name].n_step = count
        if "watch" in metadata:
            self.watch.restore(json.loads(metadata["watch"]))
        origin = metadata.get("origin")
        self.origin = from_dict(Source, json.loads(origin), f"{path}, origin") if origin else None
        step = int(metadata["step"])
        for number, other in saved_states(self.run, self.stage):
            if number > step:
                other.rename(other.with_name(f"{other.name}.aside"))
        return step


def _newest_whole(states):
    """Path, tensors and metadata of the first of the `states`, newest first, that can be read."""
    for path in states:
        try:
            return path, *read_state(path)
        except InputError as error:
            print(f"jiidm: left out, taking the one before: {error}", file=sys.stderr, flush=True)
    raise InputError(f"{states[0]}: neither it nor an older state is whole; start anew in another run folder")


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
