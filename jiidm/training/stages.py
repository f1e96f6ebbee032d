"""The stages of a training run, in one folder."""
import contextlib
import re
import sys
from pathlib import Path

from jiidm.checkpoint import load_checkpoint, load_into, open_checkpoint, save_checkpoint
from jiidm.config import check_config, check_training
from jiidm.data.folders import TrainingFolder
from jiidm.data.latents import LatentStore, PhotoLatents, description, write_latents
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.ensemble import average, ensemble_weights
from jiidm.inference.plan import make_plan
from jiidm.kernels.convolution import bfloat16_available
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.distributed import barrier, is_main_process, world_size
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder
from jiidm.system.runtime import announce_compilation, use_device
from jiidm.system.stopping import interruptible
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.claim import claimed
from jiidm.training.plan import plan
from jiidm.training.saved import saved_states, state_path
from jiidm.training.unet import UNetTrainer, check_same_network


def checked_run(config, device="auto"):
    """Chooses the device; raises InputError where a `Config` cannot be trained."""
    check_config(config)
    check_training(config)
    make_plan(config.inference, Schedule(config.diffusion))  # raises now, not after the autoencoder's hours
    use_device(device)
    if config.train_unet.precision == "bf16" and not bfloat16_available():
        raise InputError("train_unet.precision bf16: expected a GPU of compute capability 8.0 or more; use fp32")
    smallest = min(config.train_autoencoder.batch, config.train_unet.batch)
    if smallest < world_size():
        raise InputError(f"batch {smallest}: fewer samples than the {world_size()} processes; start fewer processes")


def plan_of(config, data, device="auto"):
    """What a training of `config` on the folder `data` takes, as lines of text; writes nothing."""
    checked_run(config, device)
    with announce_compilation("the training's plan"):
        return plan(config, TrainingFolder(data))


class Stages:
    """Autoencoder, latents, UNet and export of `config`, from the photos of the folder `data`, in the folder `run`.

    resume: None, and `run` must not hold a run yet; "auto" (or True), and a stage that is finished is left as it is and
    an interrupted one goes on from its newest state that is whole; or the path or, for a single stage, the step of a
    state to go on from. start_from: the checkpoint of a UNet to train on from, in place of random weights; it has no
    say where a state is resumed. Several processes (mpirun) train together; the first one does what is not training.
    """

    def __init__(self, config, data, run, validation=None, resume=None, device="auto", average=False,
                 tensorboard=False, start_from=None):
        checked_run(config, device)
        self.config, self.resume, self.average = config, "auto" if resume is True else resume or None, average
        if resume and not run.is_dir():
            raise InputError(f"{run}: no such run to resume; leave out --resume to start it")
        if not re.fullmatch(r"None|auto|\d+|(autoencoder|unet)-state.*\.safetensors", Path(str(self.resume)).name):
            raise InputError(f"--resume {resume}: expected auto, the step of a state, or the path of one "
                             f"(STAGE-state-STEP.safetensors)")
        if start_from:  # told now, not after the autoencoder's hours
            check_same_network(open_checkpoint(start_from, "unet"), config)
        self.start_from = start_from
        self.folder = TrainingFolder(data)
        self.validation = TrainingFolder(validation) if validation else None
        self.run = output_folder(run)
        self.events = self.run / "tensorboard" if tensorboard else None

    def claimed(self):
        """A context in which no other process may train in the run folder; see `jiidm.training.claim`."""
        return claimed(self.run) if is_main_process() else contextlib.nullcontext()

    def autoencoder(self):
        """Trains the autoencoder: `autoencoder.safetensors`."""
        needed, source = self._start("autoencoder", "autoencoder.safetensors")
        if needed:
            with announce_compilation("the training of the autoencoder"):
                AutoencoderTrainer(self.config, self.folder, self.run, self.validation, self.events).fit(source)
            barrier()

    def latents(self):
        """Encodes all photos and their mirror images: `latents/`. Nothing is done where they are encoded on the fly."""
        if self.config.train_unet.encode_on_the_fly:
            if is_main_process():
                print("jiidm: no store of latents is made: encode_on_the_fly is set", file=sys.stderr, flush=True)
            return
        network, path = self._trained_autoencoder(), self.run / "latents"
        about = description(network, self.folder, self.config)
        needed, _ = self._start("latents", "latents/latents.json")
        if is_main_process() and (needed or LatentStore(path).about != about):
            with announce_compilation("the encoder"), interruptible():
                write_latents(path, network, self.folder, self.config)
        barrier()

    def unet(self):
        """Trains the UNet on the latents: `unet-STEP.safetensors`."""
        needed, source = self._start("unet", f"unet-{self.config.train_unet.steps:07d}.safetensors")
        if not needed:
            return
        network = self._trained_autoencoder()
        on_the_fly = self.config.train_unet.encode_on_the_fly
        store = PhotoLatents(network, self.folder, self.config) if on_the_fly else self._store_of(network)
        photos = [self.folder.photo_path(name).name for name in self.folder.names]
        start = None if source and saved_states(self.run, "unet") else self.start_from
        with announce_compilation("the training of the UNet"):
            UNetTrainer(self.config, store, network, self.run, photos, self.events, start).fit(source)
        barrier()

    def export(self):
        """Writes what inference needs, in half precision, into `weights/`: the autoencoder and the kept UNets.

        With `average` the UNets' mean, the paper's model ensemble, is written in place of each of them.
        """
        if not is_main_process():
            return
        folder, steps = output_folder(self.run / "weights"), self.config.train_unet.keep_at
        made = load_checkpoint(self.run / "autoencoder.safetensors", "autoencoder")
        save_checkpoint(folder / "autoencoder.safetensors", made.kind, made.tensors, made.config, made.step)
        unets = [load_checkpoint(self.run / f"unet-{step:07d}.safetensors", "unet") for step in steps]
        if self.average:
            mean = average(unets, ensemble_weights(True, len(unets)))
            note = f"mean of the checkpoints at steps {', '.join(map(str, steps))}"
            note = "; ".join(filter(None, (unets[-1].note, note)))
            save_checkpoint(folder / "unet-mean.safetensors", "unet", mean, unets[-1].config, max(steps), note=note,
                            provenance=unets[-1].provenance)
        else:
            for made in unets:
                name = f"unet-{made.step:07d}.safetensors"
                save_checkpoint(folder / name, made.kind, made.tensors, made.config, made.step, note=made.note,
                                provenance=made.provenance)

    def _start(self, stage, result):
        """Whether a stage must still run, and from which state; raises InputError when it, or its result, is there
        without `resume`."""
        result = self.run / result
        found = [path for path in (result, *(path for _, path in saved_states(self.run, stage))) if path.exists()]
        if found and not self.resume:
            raise InputError(f"{found[0]}: exists already; add --resume to go on, or choose another run folder")
        named = self._named_state(stage)
        needed = named is not None or not result.exists()
        barrier()  # all have looked before the first one writes
        return needed, named or self.resume and "auto"

    def _named_state(self, stage):
        """The path of the state that `resume` names, None when it names none of this stage."""
        text = str(self.resume)
        if text.isdigit() and stage != "latents":
            path = state_path(self.run, stage, int(text))
        elif Path(text).name.startswith(f"{stage}-state"):
            path = Path(text)
        else:
            return None
        if not path.is_file():
            steps = ", ".join(str(step) for step, _ in saved_states(self.run, stage)) or "none"
            raise InputError(f"{path}: no such state; the saved steps in {self.run} are: {steps}")
        return path

    def _store_of(self, network):
        store = LatentStore(self.run / "latents")
        if store.about != description(network, self.folder, self.config):
            raise InputError(f"{self.run / 'latents'}: is of another autoencoder, size, data folder or views; "
                             f"run the latents stage again")
        return store

    def _trained_autoencoder(self):
        checkpoint = load_checkpoint(self.run / "autoencoder.safetensors", "autoencoder")
        if checkpoint.config.autoencoder != self.config.autoencoder:
            raise InputError(f"{checkpoint.path}: its network differs from the configuration's autoencoder section")
        network = Autoencoder(self.config.autoencoder)
        load_into(network, checkpoint.tensors, checkpoint.path)
        return network
