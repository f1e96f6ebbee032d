"""The stages of a training run, in one folder."""
from jiidm.checkpoint import load_checkpoint, load_into, save_checkpoint
from jiidm.config import check_config, check_training
from jiidm.data.folder import TrainingFolder
from jiidm.data.latents import LatentStore, description, write_latents
from jiidm.diffusion.schedule import Schedule
from jiidm.files import InputError, output_folder
from jiidm.inference.ensemble import average, ensemble_weights
from jiidm.models.autoencoder import Autoencoder
from jiidm.runtime import announce_compilation, use_device
from jiidm.training.autoencoder import AutoencoderTrainer
from jiidm.training.unet import UNetTrainer


class Stages:
    """Autoencoder, latents, UNet and export of `config`, from the photos of the folder `data`, in the folder `run`.

    With `resume` a stage that is finished is left as it is and an interrupted one goes on where it was last saved;
    without, `run` must not hold a run yet.
    """

    def __init__(self, config, data, run, validation=None, resume=False, device="auto", average=False):
        check_config(config)
        check_training(config)
        schedule = Schedule(config.diffusion)
        for settings in config.inference.rounds:  # told now, not after the autoencoder's hours
            schedule.check_start(settings.respacing, settings.start)
        use_device(device)
        self.config, self.resume, self.average = config, resume, average
        if resume and not run.is_dir():
            raise InputError(f"{run}: no such run to resume; leave out --resume to start it")
        self.folder = TrainingFolder(data)
        self.validation = TrainingFolder(validation) if validation else None
        self.run = output_folder(run)

    def autoencoder(self):
        """Trains the autoencoder: `autoencoder.safetensors`."""
        if self._finished("autoencoder.safetensors", "autoencoder-state.safetensors"):
            return
        with announce_compilation("the training of the autoencoder"):
            AutoencoderTrainer(self.config, self.folder, self.run, self.validation).fit(self.resume)

    def latents(self):
        """Encodes all photos and their mirror images: `latents/`."""
        network, path = self._trained_autoencoder(), self.run / "latents"
        about = description(network, self.folder, self.config)
        if self._finished("latents/latents.json") and LatentStore(path).about == about:
            return
        with announce_compilation("the encoder"):
            write_latents(path, network, self.folder, self.config)

    def unet(self):
        """Trains the UNet on the stored latents: `unet-STEP.safetensors`."""
        if self._finished(f"unet-{self.config.train_unet.steps:07d}.safetensors", "unet-state.safetensors"):
            return
        network, store = self._trained_autoencoder(), LatentStore(self.run / "latents")
        if store.about != description(network, self.folder, self.config):
            raise InputError(
                f"{self.run / 'latents'}: is of another autoencoder, size or data folder; run the latents stage again"
            )
        with announce_compilation("the training of the UNet"):
            UNetTrainer(self.config, store, network, self.run).fit(self.resume)

    def export(self):
        """Writes what inference needs, in half precision, into `weights/`: the autoencoder and the kept UNets.

        With `average` the UNets' mean, the paper's model ensemble, is written in place of each of them.
        """
        folder, steps = output_folder(self.run / "weights"), self.config.train_unet.keep_at
        made = load_checkpoint(self.run / "autoencoder.safetensors", "autoencoder")
        save_checkpoint(folder / "autoencoder.safetensors", made.kind, made.tensors, made.config, made.step)
        unets = [load_checkpoint(self.run / f"unet-{step:07d}.safetensors", "unet") for step in steps]
        if self.average:
            mean = average(unets, ensemble_weights(True, len(unets)))
            note = f"mean of the checkpoints at steps {', '.join(map(str, steps))}"
            save_checkpoint(folder / "unet-mean.safetensors", "unet", mean, unets[-1].config, max(steps), note=note)
        else:
            for made in unets:
                name = f"unet-{made.step:07d}.safetensors"
                save_checkpoint(folder / name, made.kind, made.tensors, made.config, made.step)

    def _finished(self, result, state=None):
        """Whether a stage has left its result; raises InputError when it, or its state, is there without `resume`."""
        for path in (self.run / name for name in (result, state) if name):
            if path.exists() and not self.resume:
                raise InputError(f"{path}: exists already; add --resume to go on, or choose another run folder")
        return (self.run / result).exists()

    def _trained_autoencoder(self):
        checkpoint = load_checkpoint(self.run / "autoencoder.safetensors", "autoencoder")
        if checkpoint.config.autoencoder != self.config.autoencoder:
            raise InputError(f"{checkpoint.path}: its network differs from the configuration's autoencoder section")
        network = Autoencoder(self.config.autoencoder)
        load_into(network, checkpoint.tensors, checkpoint.path)
        return network
