"""Saved states of a training: a file for each saved step, with a checksum. The newest whole one counts."""
import hashlib
import json
import re
import sys

from jiidm.checkpoint import Source, open_tensors, save_tensors
from jiidm.config import from_dict, to_dict
from jiidm.system.distributed import broadcast_numbers, broadcast_text, broadcast_vars, is_main_process
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt

# settings that may differ between a run and its continuation: apart from the learning rates, they change nothing that
# a step computes, beyond rounding
_FREE = ("learning_rate", "discriminator_learning_rate", "save_every", "sheet_every", "keep_last", "keep_every",
         "loss_limit", "skip_bad_steps", "micro_batch", "checkpoint_blocks", "precision")
CHECKSUM = "sha256"  # of the whole file, with zeros in the checksum's own place
_ZEROS = "0" * 64
_BLOCK = 1 << 22


def state_path(run, stage, step):
    """The file of the state of a stage ("autoencoder", "unet" ...) after `step` steps, in the folder `run`."""
    return run / f"{stage}-state-{step:07d}.safetensors"


def saved_states(run, stage):
    """Steps and paths of the states of a stage in the folder `run`, newest first; damaged files are listed, too."""
    name = re.compile(rf"{stage}-state-(\d+)\.safetensors")
    return sorted(((int(match[1]), path) for path in run.iterdir() if (match := name.fullmatch(path.name))),
                  reverse=True)


def read_state(path):
    """Tensors (`StoredTensor`s by name) and metadata of a saved state.

    Raises:
        InputError: when the file is missing, truncated, or differs by as much as a bit from what was written.
    """
    tensors, metadata = open_tensors(path)
    checksum = metadata.get(CHECKSUM, _ZEROS)
    if _checksum(path, checksum) != checksum:
        raise InputError(f"{path}: damaged (its checksum does not match)")
    return tensors, metadata


def _checksum(path, expected):
    with open(path, "rb") as file:
        length = file.read(8)
        text = file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(length + text.replace(expected.encode(), _ZEROS.encode(), 1))
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def prune(run, stage, last, every):
    """Deletes the states of a stage except the newest `last` and those at multiples of `every` (0: no others)."""
    for step, path in saved_states(run, stage)[last:]:
        if not every or step % every:
            path.unlink()


class TrainingState:
    """Everything that a training needs to go on, apart from its step number, saved and restored bit for bit.

    Random numbers are functions of (seed, step, name), see `rng_for`: the step number is the random state.

    Args:
        run: the run's folder.
        stage: prefix of the files, and with "train_" before it the training's section of the configuration.
        config: the configuration.
        sections: sections that must be the same in a continuation, learning rates, intervals and what saves memory
            apart.
        learners: the `Learner`s.
        ema: the `EMA`.
        watch: the `Watch`.

    Attributes:
        variables: names to float32 Vars; a trainer may add more.
        origin: the `Source` of the first weights where they are another run's, else None.
    """

    def __init__(self, run, stage, config, sections, learners, ema, watch):
        self.run, self.stage, self.watch, self.origin = run, stage, watch, None
        self.fingerprint = _fingerprint(config, (*sections, "seed"))
        training = getattr(config, f"train_{stage}")
        self.keep_last, self.keep_every = training.keep_last, training.keep_every
        self.optimizers = {learner.name: learner.optimizer for learner in learners}
        self.variables = {f"ema/{name}": value for name, value in ema.average.items()}
        for each in learners:
            self.variables.update({f"{each.name}/{name}": p for name, p in each.network.named_parameters()})
            for group in each.optimizer.param_groups:
                for moment in ("m", "values"):  # Adam's first and second moments
                    self.variables.update({f"{each.name}-{moment}/{i}": v for i, v in enumerate(group[moment])})

    def save(self, step):
        """Writes the state after `step` steps and deletes what `keep_last` and `keep_every` do not keep."""
        metadata = {"step": step, "counts": self._counts(), "config": self.fingerprint, "watch": self.watch.state(),
                    "origin": to_dict(self.origin)}
        save_tensors(state_path(self.run, self.stage, step), self.variables,
                     {name: json.dumps(value) for name, value in metadata.items()}, checksum=CHECKSUM)
        prune(self.run, self.stage, self.keep_last, self.keep_every)

    def resume(self, source):
        """Restores a state and returns its step; process 0 reads, the others receive.

        Newer states, damaged or gone back behind, are renamed to NAME.aside.

        Args:
            source: the path of a state; "auto" for the newest whole one, or step 0 if there is none; None for step 0.

        Raises:
            InputError: when the state is unreadable or of another configuration, or none of several is whole.
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

    def _load(self, source):
        if source == "auto":
            states = [path for _, path in saved_states(self.run, self.stage)]
            if not states:
                return 0
            path, tensors, metadata = _newest_whole(states)
        else:
            path = source
            tensors, metadata = read_state(path)
        saved = {name: json.loads(metadata.get(name, "null"))
                 for name in ("step", "counts", "config", "watch", "origin")}
        if saved["config"] != self.fingerprint:
            raise InputError(f"{path}: belongs to another configuration; resume with that one or use a new run "
                             f"folder")
        if tensors.keys() != self.variables.keys():
            raise InputError(f"{path}: holds other variables than this training has; use a new run folder")
        for name, variable in self.variables.items():
            variable.assign(jt.array(tensors[name].read()))
        for name, count in saved["counts"].items():
            self.optimizers[name].n_step = count
        self.watch.restore(saved["watch"])
        self.origin = from_dict(Source, saved["origin"], f"{path}, origin") if saved["origin"] else None
        for number, other in saved_states(self.run, self.stage):
            if number > saved["step"]:
                other.rename(other.with_name(f"{other.name}.aside"))
        return saved["step"]


def _fingerprint(config, sections):
    """What must be the same in a run and its continuation: nested dicts of numbers and texts."""
    settings = to_dict(config)
    for section in settings.values():
        if isinstance(section, dict):
            for name in _FREE:
                section.pop(name, None)
    return {name: settings[name] for name in sections}


def _newest_whole(states):
    """Path, tensors and metadata of the first of `states`, newest first, that can be read."""
    for path in states:
        try:
            return path, *read_state(path)
        except InputError as error:
            print(f"jiidm: left out, taking the one before: {error}", file=sys.stderr, flush=True)
    raise InputError(f"{states[0]}: neither it nor an older state is whole; start anew in another run folder")
