"""The stages of training IIDM, in one folder: autoencoder, decoder (on request), latents, UNet, export."""
import dataclasses
import re
import sys
from pathlib import Path

from jiidm.checkpoint import load_checkpoint, load_into, open_checkpoint, save_checkpoint
from jiidm.config import check_config, check_training
from jiidm.data.folders import BY_HAND, TrainingFolder
from jiidm.data.latents import LatentStore, PhotoLatents, description, weights_hash, write_latents
from jiidm.data.packed import PackedLatents
from jiidm.data.vocabulary import count_classes
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
from jiidm.training.decoder import DecoderTrainer
from jiidm.training.plan import plan
from jiidm.training.trainer import check_new, check_resume, run_stage
from jiidm.training.unet import UNetTrainer, check_same_network


def check_run(config, device="auto"):
    """Chooses the device; raises InputError where a `Config` cannot be trained on it."""
    check_config(config)
    check_training(config, "train_autoencoder", "train_unet")
    make_plan(config.inference, Schedule(config.diffusion))  # raises now, not after the autoencoder's hours
    use_device(device)
    for name in ("train_unet", "train_decoder"):
        if getattr(config, name).precision == "bf16" and not bfloat16_available():
            raise InputError(f"{name}.precision bf16: expected a GPU of compute capability 8.0 or more; use fp32")
    smallest = min(config.train_autoencoder.batch, config.train_unet.batch)
    if smallest < world_size():
        raise InputError(f"batch {smallest}: fewer samples than the {world_size()} processes; start fewer processes")


def plan_of(config, data, device="auto"):
    """What a training of `config` on the folder `data` takes, as lines of text; writes nothing."""
    check_run(config, device)
    with announce_compilation("the training's plan"):
        return plan(config, TrainingFolder(data))


class Stages:
    """Trains the networks of a `Config`; each method is a stage, to be run in their order.

    Args:
        config: the `Config`.
        data: folder with imgs/ and labels/; for the UNet's stage also a file of packed latents.
        run: folder to write into.
        validation: folder of held-out photos for the autoencoder's sample grids, or None.
        resume: as for `run_stage`, True for "auto"; finished stages are left as they are.
        device: "auto", "cpu" or "cuda".
        average: `export` writes the mean of the kept UNets in place of each of them.
        tensorboard: whether to write TensorBoard's files, into run/tensorboard.
        start_from: checkpoint whose weights the UNet starts from; random ones by default.
        reader: the `LabelReader` of the label maps. None: numbers of the contest's classes, or without names.
        latest: `export` takes the averaged weights as last saved where a training has not come to its end.

    Raises:
        InputError: for a configuration, folder or checkpoint that cannot be used; nothing is written then.
    """

    def __init__(self, config, data, run, validation=None, resume=None, device="auto", average=False,
                 tensorboard=False, start_from=None, reader=None, latest=False):
        check_run(config, device)
        self.resume = "auto" if resume is True else resume or None
        check_resume(run, self.resume)
        if start_from:  # told now, not after the autoencoder's hours
            check_same_network(open_checkpoint(start_from, "unet"), config)
        self.config, self.average, self.latest = config, average, latest
        self.tensorboard, self.start_from = tensorboard, start_from
        self.packed = PackedLatents(data, reader) if Path(data).is_file() else None
        self.folder = self.packed or TrainingFolder(data, reader)
        self.validation = TrainingFolder(validation, reader) if validation else None
        self.run = output_folder(run)

    def numbers_by_hand(self):
        """Numbers of the photos that `by_hand_weight` is for; none at weight 1.

        Raises:
            InputError: the data folder does not name them.
        """
        weight = self.config.train_unet.by_hand_weight
        if weight == 1:
            return []
        names = self.folder.by_hand()
        if names is None:
            raise InputError(f"{self.folder.path / BY_HAND}: missing; train_unet.by_hand_weight {weight:g} needs the "
                             f"names of the hand-made label maps, a line each")
        numbers = {name: number for number, name in enumerate(self.folder.names)}
        return [numbers[name] for name in names] if len(names) < len(self.folder.names) else []

    def autoencoder(self):
        """Trains the autoencoder: `autoencoder.safetensors`."""
        self._check_photos("autoencoder")
        run_stage(AutoencoderTrainer(self.config, self.folder, self.run, self.validation, self.tensorboard),
                  self._resume_of("autoencoder"))

    def decoder(self):
        """Trains the decoder further, by perceptual and adversarial losses: `decoder.safetensors`, the autoencoder with
        that decoder. Encoder and codebook are those of `autoencoder.safetensors`: latents and UNet stay valid. With
        `train_decoder.encoder` all is trained, and the stages after this one take it."""
        self._check_photos("decoder")
        run_stage(DecoderTrainer(self.config, self.folder, self.run, self.run / "autoencoder.safetensors",
                                 self.validation, self.tensorboard), self._resume_of("decoder"))

    def latents(self):
        """Encodes all photos and their mirror images: `latents/`. Does nothing where they are encoded on the fly."""
        self._check_photos("latents")
        if self.config.train_unet.encode_on_the_fly:
            if is_main_process():
                print("jiidm: no store of latents is written: encode_on_the_fly is set", file=sys.stderr, flush=True)
            return
        network, path = self._trained_autoencoder(), self.run / "latents"
        result, about = path / "latents.json", description(network, self.folder, self.config)
        with claimed(self.run):
            check_new(self.run, "latents", result, self.resume)
            if is_main_process() and not (result.exists() and LatentStore(path).about == about):
                with announce_compilation("the encoder"), interruptible():
                    write_latents(path, network, self.folder, self.config)
        barrier()

    def unet(self):
        """Trains the UNet on the latents: `unet-STEP.safetensors`."""
        network = self._trained_autoencoder()
        if self.config.train_unet.encode_on_the_fly:
            self._check_photos("unet with encode_on_the_fly")
            store = PhotoLatents(network, self.folder, self.config)
        else:
            store = self._packed_of(network) if self.packed else self._store_of(network)
        photos = self.folder.names if self.packed else [self.folder.photo_path(n).name for n in self.folder.names]
        table = self.folder.reader(self.config.unet.num_classes).vocabulary.table
        run_stage(UNetTrainer(self.config, store, network, self.run, photos, self.tensorboard, self.start_from, table,
                              self.numbers_by_hand()), self._resume_of("unet"))

    def export(self):
        """Writes what inference needs, in half precision and with the configuration's recipe, into `weights/`: the
        autoencoder, with its further trained decoder if there is one, and the kept UNets, or with `average` their
        mean, the paper's model ensemble."""
        if not is_main_process():
            return
        decoders = [self.run / "decoder.safetensors"]
        if self.latest:
            decoders.append(self.run / "decoder-latest.safetensors")
        further = next((path for path in decoders if path.exists()), self._autoencoder_path())
        autoencoder = load_checkpoint(further, "autoencoder")
        unets = [load_checkpoint(path, "unet") for path in self._unet_paths()]
        for unet in unets:  # their own diffusion runs the configuration's recipe
            make_plan(self.config.inference, Schedule(unet.config.diffusion))
        self._export("autoencoder", autoencoder)
        if self.average:
            steps, last = [unet.step for unet in unets], max(unets, key=lambda unet: unet.step)
            mean = average(unets, ensemble_weights(True, len(unets)))
            note = f"mean of the checkpoints at steps {', '.join(map(str, steps))}"
            self._export("unet-mean", last, mean, "; ".join(filter(None, (last.note, note))))
            return
        for unet in unets:
            self._export(f"unet-{unet.step:07d}", unet)

    def _unet_paths(self):
        """The UNets that `export` takes: the kept ones, or with `latest` the newest where one is missing."""
        paths = [self.run / f"unet-{step:07d}.safetensors" for step in self.config.train_unet.keep_at]
        missing = [path for path in paths if not path.exists()]
        if not missing:
            return paths
        saved = [path for path in (*paths, self.run / "unet-latest.safetensors") if path.exists()]
        if not (self.latest and saved):
            raise InputError(f"{missing[0]}: no such file; the training has not come so far. --resume goes on with it, "
                             f"export --latest takes the weights as they are")
        return [max(saved, key=lambda path: open_checkpoint(path, "unet").step)]

    def _export(self, name, checkpoint, tensors=None, note=None):
        path = output_folder(self.run / "weights") / f"{name}.safetensors"
        config = dataclasses.replace(checkpoint.config, inference=self.config.inference)
        save_checkpoint(path, checkpoint.kind, tensors or checkpoint.tensors, config, checkpoint.step,
                        note=note or checkpoint.note, provenance=checkpoint.provenance,
                        classes=checkpoint.classes or self._count_classes(checkpoint))

    def _count_classes(self, checkpoint):
        """What a UNet is to say of classes where an older version trained it, as a dict; None for an autoencoder."""
        if checkpoint.kind != "unet":
            return None
        reader = self.folder.reader(checkpoint.config.unet.num_classes)
        return count_classes(self.folder.label_maps(len(reader.vocabulary)), reader.vocabulary.table).as_dict()

    def _resume_of(self, stage):
        """What `resume` means for a stage: the path of another stage's state means "auto"."""
        other = re.match(r"(autoencoder|decoder|unet)-state", Path(str(self.resume)).name)
        return "auto" if other and other[1] != stage else self.resume

    def _store_of(self, network):
        store = LatentStore(self.run / "latents")
        if store.about != description(network, self.folder, self.config):
            raise InputError(f"{self.run / 'latents'}: is of another autoencoder, size, data folder or views; "
                             f"run the latents stage again")
        return store

    def _packed_of(self, network):
        about, image = self.packed.about, self.config.image
        given = {"autoencoder": weights_hash(network), "width": image.width, "height": image.height}
        if any(about.get(name) != value for name, value in given.items()):
            raise InputError(f"{self.packed.path}: is of another autoencoder or size; pack the latents that "
                             f"{self._autoencoder_path()} made")
        if about.get("maps", "") != self.packed.reading:
            raise InputError(f"{self.packed.path}: its label maps were read by another table; give the --classes and "
                             f"--snap of the latents stage")
        return self.packed

    def _check_photos(self, stage):
        if self.packed:
            raise InputError(f"{self.packed.path}: packed latents, which only the unet trains on; give the {stage} a "
                             f"folder with imgs/ and labels/")

    def _autoencoder_path(self):
        """The autoencoder whose latents the UNet learns."""
        name = "decoder" if self.config.train_decoder.encoder else "autoencoder"
        return self.run / f"{name}.safetensors"

    def _trained_autoencoder(self):
        checkpoint = load_checkpoint(self._autoencoder_path(), "autoencoder")
        if checkpoint.config.autoencoder != self.config.autoencoder:
            raise InputError(f"{checkpoint.path}: its network differs from the configuration's autoencoder section")
        network = Autoencoder(self.config.autoencoder)
        load_into(network, checkpoint.tensors, checkpoint.path)
        return network
