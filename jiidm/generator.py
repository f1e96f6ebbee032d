"""The one class that chains everything: label map and style photo in, landscape picture out."""
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm.baselines.config import MODELS
from jiidm.baselines.inference import BaselineGenerator
from jiidm.checkpoint import load_checkpoint, load_into, open_tensors
from jiidm.config import check_config, with_recipe
from jiidm.data.labels import read_label_map, resize_labels
from jiidm.data.latents import one_hot_batch
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.diffusion.guidance import Guidance, GuidedDenoiser, ReferenceDenoiser
from jiidm.diffusion.schedule import Schedule
from jiidm.inference.color_transfer import METHODS
from jiidm.inference.ensemble import average, check_alike, ensemble_weights
from jiidm.inference.refinement import chosen_rounds, chosen_solver_steps, noise_of_batch, refine
from jiidm.kernels.convolution import bfloat16_available, inference_convolution
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import prepare
from jiidm.models.unet import UNet
from jiidm.system.errors import InputError
from jiidm.system.runtime import announce_compilation, device_name, jt, use_device

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default"


class Generator:
    """Semantic image synthesis with IIDM (Liu & Chang 2024).

    Make one with `Generator.from_checkpoint`. `width` and `height` are the size in pixels that its networks work at,
    `config` the whole configuration they were trained with.
    """

    model = "iidm"

    def __init__(self, autoencoder, unets, precision="fp32", condition_cache_mb=None, recipe=None, reference=False):
        """autoencoder is a `Checkpoint`, unets a list of them; the rest as in `from_checkpoint`, precision being "fp32"
        or "bf16". Raises InputError unless the checkpoints are of one run."""
        check_alike(unets)
        self.config = unets[-1].config
        if autoencoder.config.autoencoder != self.config.autoencoder:
            raise InputError(
                f"{autoencoder.path}: is not the autoencoder that {unets[-1].path} was trained with; "
                "give checkpoints of one run"
            )
        check_config(self.config)
        if recipe is not None:
            self.use_recipe(recipe)
        self.width, self.height = self.config.image.width, self.config.image.height
        self.schedule = Schedule(self.config.diffusion)
        self.checkpoints, self._autoencoder_checkpoint = unets, autoencoder
        self._autoencoder = Autoencoder(autoencoder.config.autoencoder)
        load_into(self._autoencoder, autoencoder.tensors, autoencoder.path)
        self._autoencoder.eval()
        self._unet = UNet(self.config.unet)
        self._unet.eval()
        self._reference = reference
        self._budget = None if condition_cache_mb is None else condition_cache_mb * 2**20
        self._convolution = None
        if not reference:
            self._convolution = inference_convolution(device_name(), precision, self.config.unet.model_channels)
            prepare(self._autoencoder, inference_convolution(device_name(), "fp32", self.config.autoencoder.ch))
        self._loaded = self._null = None
        self._use(ensemble_weights(True, len(unets)))

    @classmethod
    def from_checkpoint(cls, paths="default", device="auto", precision="auto", condition_cache_mb=None,
                        recipe=None, reference=False):
        """Loads the weights and returns a `Generator`, or for GauGAN and CLADE a `BaselineGenerator`.

        paths: "default" (the weights that come with the package), a folder with one autoencoder and one or more UNets
        (`*.safetensors`), or a list of such files. device: "auto" (CUDA where it works), "cpu" or "cuda". precision:
        "auto" (bf16 where the GPU has it, else fp32), "fp32" or "bf16"; statistics, softmax, latents and the
        autoencoder are fp32 always. condition_cache_mb: memory for the maps made from the masks, in MB (None: all on
        CUDA, 2048 on the CPU); what does not fit is computed anew at every step, with the same result. recipe: what to
        put in place of the checkpoints' own recipe, as for `use_recipe`. reference: compute as the authors' release
        does, twice the whole network a step in Jittor's own operators, for comparison. Raises InputError for what is
        missing, unreadable, of another architecture, or has NaN, and for a recipe that cannot be used.
        """
        files = _files(paths)
        baselines = [path for path in files if open_tensors(path)[1].get("kind") in MODELS]
        if baselines and len(files) > 1:
            raise InputError(f"{paths}: {len(files)} checkpoints, of which {baselines[0].name} is a baseline, a model "
                             f"of its own; give that file alone, in a folder or a list of one")
        if baselines:
            if recipe is not None or precision == "bf16" or reference:
                raise InputError(f"{paths}: a baseline has no recipe and computes in fp32, in one way; leave recipe, "
                                 f"precision and reference out")
            return BaselineGenerator.from_checkpoint(baselines[0], device)
        device = use_device(device)
        precision = _precision(precision)
        if condition_cache_mb is None and device == "cpu":
            condition_cache_mb = 2048
        if condition_cache_mb is not None and condition_cache_mb < 0:
            raise InputError(f"condition_cache_mb {condition_cache_mb}: expected at least 0")
        autoencoders, unets = [], []
        for path in files:
            checkpoint = load_checkpoint(path)
            (autoencoders if checkpoint.kind == "autoencoder" else unets).append(checkpoint)
        if len(autoencoders) != 1 or not unets:
            raise InputError(
                f"{paths}: found {len(autoencoders)} autoencoders and {len(unets)} UNets, "
                "expected one autoencoder and at least one UNet"
            )
        unets = sorted(unets, key=lambda c: c.step)
        return cls(autoencoders[0], unets, precision, condition_cache_mb, recipe, reference)

    def use_recipe(self, recipe):
        """Puts another recipe in place of the configuration's inference section, for all pictures to come.

        recipe: an `InferenceConfig`, or a dict or the path of a YAML file with the keys that are to change, such as
        {"guidance_rescale": 0.7}; keys that are not there stay. Raises InputError for a key or a value that is none.
        """
        self.config = with_recipe(self.config, recipe)

    @property
    def num_classes(self):
        """How many labels it knows."""
        return self.config.unet.num_classes

    def describe(self):
        """A line for each checkpoint: what it is, its step and, where it is a mean, what went into it."""
        return "\n".join(c.describe() for c in (self._autoencoder_checkpoint, *self.checkpoints))

    def batch_size(self):
        """How many pictures at a time suit the device: 4 on the CPU, on CUDA what its free memory holds, at most 32."""
        if device_name() == "cpu":
            return 4
        factor = self.config.autoencoder.factor
        positions = (self.width // factor) * (self.height // factor)
        # maps of both branches, features and workspace of a step: about 64 tensors as wide as the first level
        image = 4 * 64 * self.config.unet.model_channels * positions
        memory = jt.get_mem_info()
        return int(min(32, max(1, 0.8 * (memory.total_cuda_ram - memory.total_cuda_used) // image)))

    def infer(self, mask, style, rounds=None, color_transfer=True, ensemble=True, seed=0, size="model", names=None,
              on_step=None, sampler=None, steps=None, final_color_transfer=None):
        """Pictures of the label maps in the manner of the style photos.

        mask: path, PIL image or H x W integer array (0..classes-1). style: path, PIL image or H x W x 3 uint8 array
        (cropped to the model's aspect). Lists of equal length of both make a batch and give a list; else one
        `PIL.Image` (RGB) comes back. rounds: the first n rounds of the recipe (None: all), or a list of settings
        (`RoundConfig` or dicts with guidance, respacing, start). color_transfer: bool, or a method's name, between
        rounds. ensemble: True (mean of the loaded checkpoints), False (the last one), or a list of weights. size:
        "model", or "mask" for the mask's own size. names: what each image's noise is drawn for, together with the
        seed; by default a path's stem and "" for others. on_step(round, done, steps, pictures) is called after every
        step; pictures is a list of PIL images after a round's last step, else None. sampler: "ddim", the paper's, or
        "dpmpp", DPM-Solver++ in `steps` evaluations a round whatever its start; by default the configuration's.
        final_color_transfer: a method's name for the picture after the last round, or False; None takes what the recipe
        says. Raises InputError for anything that cannot be used.
        """
        batch = isinstance(mask, list | tuple)
        masks, styles = (mask, style) if batch else ([mask], [style])
        if not isinstance(styles, list | tuple) or len(masks) != len(styles) or not masks:
            raise InputError("mask and style: expected one of each, or two lists of equal length")
        if size not in ("model", "mask"):
            raise InputError(f'size {size!r}: expected "model" or "mask"')
        names = [_name_of(m) for m in masks] if names is None else names
        if isinstance(names, str) or len(names) != len(masks):
            raise InputError(f"names {names!r}: expected a list of {len(masks)}, one for each mask")
        settings = chosen_rounds(rounds, self.config.inference.rounds)
        solver_steps = chosen_solver_steps(sampler, steps, self.config.inference)
        for s in settings:  # told before anything is computed
            self.schedule.check_start(s.respacing, s.start, solver_steps)
        method, final = self._method(color_transfer), self._final_method(final_color_transfer)
        self._use(ensemble_weights(ensemble, len(self.checkpoints)))

        labels = [read_label_map(m, self.config.unet.num_classes) for m in masks]
        photos = np.stack([fit_photo(read_photo(s), self.width, self.height) for s in styles])
        resized = np.stack([resize_labels(label, self.width, self.height) for label in labels])
        with announce_compilation(f"the networks for {self.width}x{self.height} pictures"):
            factor = self.config.autoencoder.factor
            hot = one_hot_batch(resized, self.config.unet.num_classes)
            denoiser = self._denoiser(hot, self.height // factor, self.width // factor)
            classes = resized[:, ::factor, ::factor]  # of the latents' places, as in training
            noise = noise_of_batch(seed, names, classes, self.config.inference.class_noise)
            for number, done, count, pictures in refine(
                self._autoencoder, denoiser, self.schedule, photos, settings, noise, method, solver_steps, final
            ):
                if on_step is not None:
                    on_step(number, done, count, None if pictures is None else [Image.fromarray(p) for p in pictures])
        images = [Image.fromarray(p) for p in pictures]
        if size == "mask":
            images = [
                i.resize(label.shape[::-1], Image.Resampling.LANCZOS) for i, label in zip(images, labels, strict=True)
            ]
        return images if batch else images[0]

    def _method(self, color_transfer):
        if color_transfer is False:
            return None
        if color_transfer is True:
            color_transfer = self.config.inference.color_transfer
        if color_transfer not in METHODS:
            raise InputError(f"color_transfer {color_transfer!r}: expected True, False or one of {', '.join(METHODS)}")
        return color_transfer

    def _final_method(self, final):
        final = self.config.inference.final_color_transfer if final is None else final
        if final is False or final == "":
            return None
        if final not in METHODS:
            raise InputError(f"final_color_transfer {final!r}: expected None, False or one of {', '.join(METHODS)}")
        return final, self.config.inference.final_color_share

    def _use(self, weights):
        """Loads the mean of the checkpoints with the given weights, unless it is loaded already."""
        if weights != self._loaded:
            load_into(self._unet, average(self.checkpoints, weights), self.checkpoints[0].path)
            prepare(self._unet, self._convolution)
            self._loaded, self._null = weights, None

    def _denoiser(self, mask, height, width):
        guidance = Guidance(self.schedule, self.config.inference)
        if self._reference:
            return ReferenceDenoiser(self._unet, mask, guidance)
        # one batch for both branches fills a GPU better; two cores gain nothing by it
        joint = device_name() == "cuda"
        denoiser = GuidedDenoiser(self._unet, mask, height, width, self._budget, self._null, joint, guidance)
        self._null = denoiser.null  # serves all images to come
        return denoiser


def _precision(precision):
    if precision not in ("auto", "fp32", "bf16"):
        raise InputError(f"precision {precision!r}: expected auto, fp32 or bf16")
    able = bfloat16_available()
    if precision == "bf16" and not able:
        raise InputError("precision bf16: expected a GPU of compute capability 8.0 or more; use fp32")
    return "bf16" if able and precision != "fp32" else "fp32"


def _files(paths):
    if isinstance(paths, list | tuple):
        return [Path(p) for p in paths]
    folder = DEFAULT_WEIGHTS if paths == "default" else Path(paths)
    if not folder.is_dir():
        what = "one file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of checkpoints, or a list of files")
    return sorted(folder.glob("*.safetensors"))


def _name_of(mask):
    return Path(mask).stem if isinstance(mask, str | Path) else ""
