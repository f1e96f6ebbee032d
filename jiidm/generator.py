"""The one class that chains everything: label map and style photo in, landscape picture out."""
from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jiidm.checkpoint import KINDS, Checkpoint, load_into, open_checkpoint, open_tensors
from jiidm.config import InferenceConfig, RoundConfig, check_config, with_recipe
from jiidm.data.inputs import prepare_inputs
from jiidm.data.latents import one_hot_batch
from jiidm.data.vocabulary import vocabulary_of
from jiidm.diffusion.schedule import Schedule
from jiidm.evaluation.segment import open_segmenter
from jiidm.inference.ensemble import average, check_alike, ensemble_weights
from jiidm.inference.plan import make_plan
from jiidm.inference.refinement import Step, draw_noise, refine
from jiidm.inference.windows import WindowedConditions, window_starts
from jiidm.kernels.convolution import LeanConvolution, bfloat16_available, inference_convolution
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.blocks import prepare, store_half
from jiidm.models.unet import Conditions, ReferenceConditions, UNet
from jiidm.system.errors import InputError
from jiidm.system.memory import available_memory
from jiidm.system.runtime import announce_compilation, device_name, jt, use_device

if TYPE_CHECKING:
    from jiidm.baselines.inference import BaselineGenerator
    from jiidm.data.classes import ClassTable

DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "default"
_CPU_CACHE_MB, _LEAN_CACHE_MB = 2048, 768  # the latter holds the maps of one 512x384 picture at full size
# Inference takes about this many times the bytes of the UNet's fp32 weights where packed ones are kept beside them
_PACKED_MEMORY = 4

Mask = str | Path | Image.Image | np.ndarray
Photo = str | Path | Image.Image | np.ndarray
Paths = str | Path | Sequence[str | Path]


class Generator:
    """Semantic image synthesis with IIDM (Liu & Chang 2024). Make one with `load` or `Generator.from_checkpoint`.

    `width` and `height` are the size in pixels that its networks work at, `num_classes` how many labels it knows,
    `vocabulary` which (a `Vocabulary`: names, colours, and which of them the training saw), `config` the whole
    configuration that they were trained with, its recipe included.
    """

    model = "iidm"

    def __init__(self, autoencoder: Checkpoint, unets: list[Checkpoint], precision: str = "fp32",
                 condition_cache_mb: int | None = None, reference: bool = False, low_memory: bool = False):
        """Builds the networks.

        Args:
            autoencoder, unets: checkpoints of one run. Weights that are still in their files are read one by one.
            precision: "fp32" or "bf16".
            condition_cache_mb, reference: as in `from_checkpoint`.
            low_memory: as in `from_checkpoint`.

        Raises:
            InputError: checkpoints that do not belong together.
        """
        check_alike(unets)
        self.config = unets[-1].config
        if autoencoder.config.autoencoder != self.config.autoencoder:
            raise InputError(
                f"{autoencoder.path}: is not the autoencoder that {unets[-1].path} was trained with; "
                "give checkpoints of one run"
            )
        check_config(self.config)
        self.width, self.height = self.config.image.width, self.config.image.height
        self.num_classes = self.config.unet.num_classes
        self.vocabulary = vocabulary_of(unets[-1].classes, self.num_classes, unets[-1].path)
        self.schedule = Schedule(self.config.diffusion)
        self.checkpoints, self.autoencoder_checkpoint = unets, autoencoder
        self._autoencoder = Autoencoder(autoencoder.config.autoencoder)
        load_into(self._autoencoder, average([autoencoder], (1.0,)), autoencoder.path)
        self._autoencoder.eval()
        self._unet = UNet(self.config.unet)
        self._unet.eval()
        self._reference = reference
        self._budget = None if condition_cache_mb is None else condition_cache_mb * 2**20
        self._convolution = None
        if not reference:
            self._convolution = inference_convolution(device_name(), precision, self.config.unet.model_channels,
                                                      lean=low_memory)
            for_autoencoder = inference_convolution(device_name(), "fp32", self.config.autoencoder.ch, lean=low_memory)
            _prepare(self._autoencoder, for_autoencoder)
        self._loaded: tuple[float, ...] | None = None
        self._null: Any = None
        self._load_mean(ensemble_weights(True, len(unets)))

    @classmethod
    def from_checkpoint(cls, paths: Paths = "default", device: str = "auto", precision: str = "auto",
                        condition_cache_mb: int | None = None, reference: bool = False,
                        low_memory: bool | None = None) -> Generator:
        """Loads the weights of IIDM.

        Args:
            paths: "default" (the weights that come with the package), a folder with one autoencoder and at least one
                UNet (`*.safetensors`), or a list of such files.
            device: "auto" (CUDA where it works), "cpu" or "cuda".
            precision: of the UNet, "auto" (bf16 where the GPU has it, else fp32), "fp32" or "bf16". Statistics,
                softmax, latents and the autoencoder are fp32 always.
            condition_cache_mb: memory for the SPADE maps of the masks, in MB (None: no limit on CUDA, 2048 on the CPU,
                768 there with low memory). Maps that do not fit are computed at every step, with the same result.
            reference: compute as the authors' release does, twice the whole network a step in Jittor's own operators.
            low_memory: on the CPU keep no packed weights: half of the memory at full size, half as much time again
                a step (None: where less than four times the UNet's weights is free; a line on stderr then says so).

        Raises:
            InputError: weights that are missing, unreadable, of another model, or have NaN.
        """
        files = _find_files(paths)
        for path in _baselines(files):
            raise InputError(f"{path}: a baseline, a model of its own; load it with jiidm.load")
        if precision not in ("auto", "fp32", "bf16"):
            raise InputError(f"precision {precision!r}: expected auto, fp32 or bf16")
        device = use_device(device)
        if precision == "bf16" and not bfloat16_available():
            raise InputError("precision bf16: expected a GPU of compute capability 8.0 or more; use fp32")
        if precision == "auto":
            precision = "bf16" if bfloat16_available() else "fp32"
        if condition_cache_mb is not None and condition_cache_mb < 0:
            raise InputError(f"condition_cache_mb {condition_cache_mb}: expected at least 0")
        checkpoints = [open_checkpoint(path) for path in files]
        autoencoders = [c for c in checkpoints if c.kind == "autoencoder"]
        unets = sorted((c for c in checkpoints if c.kind == "unet"), key=lambda c: c.step)
        if len(autoencoders) != 1 or not unets:
            raise InputError(
                f"{paths}: found {len(autoencoders)} autoencoders and {len(unets)} UNets, "
                "expected one autoencoder and at least one UNet"
            )
        low_memory = device == "cpu" and not reference and (_is_short(unets[0]) if low_memory is None else low_memory)
        if condition_cache_mb is None and device == "cpu":
            condition_cache_mb = _LEAN_CACHE_MB if low_memory else _CPU_CACHE_MB
        return cls(autoencoders[0], unets, precision, condition_cache_mb, reference, low_memory)

    def describe(self) -> str:
        """A line for each checkpoint: what it is, its step and, where it is a mean, its sources."""
        return "\n".join(c.describe() for c in (self.autoencoder_checkpoint, *self.checkpoints))

    def batch_size(self) -> int:
        """How many pictures at a time suit the device: 4 on the CPU, or 1 with low memory; on CUDA as many as its free
        memory holds, 1 to 32.
        """
        if device_name() == "cpu":
            return 1 if self._convolution is LeanConvolution else 4
        factor = self.config.autoencoder.factor
        positions = (self.width // factor) * (self.height // factor)
        # maps of both branches, features and workspace of a step: about 64 tensors as wide as the first level
        image = 4 * 64 * self.config.unet.model_channels * positions
        memory = jt.get_mem_info()
        return int(min(32, max(1, 0.8 * (memory.total_cuda_ram - memory.total_cuda_used) // image)))

    def infer(
        self,
        mask: Mask | Sequence[Mask],
        style: Photo | Sequence[Photo],
        rounds: int | list[RoundConfig | dict] | None = None,
        color_transfer: bool | str = True,
        ensemble: bool | list[float] = True,
        *,
        recipe: InferenceConfig | dict | str | Path | None = None,
        seed: int = 0,
        size: str | tuple[int, int] = "model",
        names: Sequence[str] | None = None,
        on_step: Callable[[Step], Any] | None = None,
        style_labels: Mask | Sequence[Mask] | None = None,
        classes: str | Path | ClassTable = "auto",
        snap: bool = False,
        nearest_class: bool = False,
    ) -> Image.Image | list[Image.Image]:
        """Draws the landscape of a label map in the style of a photo.

        Args:
            mask: label map: a path, a PIL image or an array (H, W integers 0..num_classes-1, or H, W, 3 uint8 in the
                colours of a table), or a list of them. 255 and transparent pixels have no class: the networks fill
                them in.
            style: style photo: a path, a PIL image or an array (H, W, 3 uint8), or a list as long as the masks'. It is
                cropped to the network's aspect.
            rounds: the first n rounds of the recipe (None: all), or a list of rounds (`RoundConfig` or dicts).
            color_transfer: whether there is a colour transfer before each round but the first, or its method.
            ensemble: True (mean of the loaded checkpoints), False (the last one), or a list of their weights.
            recipe: keys of `InferenceConfig`, as a dict or a YAML file's path; absent keys are the checkpoint's.
            seed: of the noise. The same seed, name and inputs give the same picture, alone or in a batch.
            size: of the result: "model" (as the rounds draw it), "mask" (each mask's own) or (width, height) in pixels.
            names: what each picture's noise is drawn for, with the seed (None: a mask's file name, "" for others).
            on_step: called with a `Step` after every step. What it raises ends the call.
            style_labels: label map of the style photo, or a list as long as the masks': all colour transfers go from
                class to class. None: so they do where the recipe has `color_by_class`, by label maps that the package's
                segmenter predicts.
            classes: the table that the label maps' numbers and colours are of: a shipped one's name, a YAML file, or
                "auto": numbers are the networks' labels, colours are of the one table that has them all.
            snap: give stray colours of a mask (smoothed edges, a JPEG) the nearest class among those around them.
            nearest_class: draw classes that the training has not seen as those that stand in for them.

        Returns:
            An RGB picture, or a list of them where masks came as a list.

        Raises:
            InputError: anything that cannot be used. A recipe is checked before files are read.
        """
        config = with_recipe(self.config, recipe)
        plan = make_plan(config.inference, self.schedule, rounds, color_transfer)
        weights = ensemble_weights(ensemble, len(self.checkpoints))
        width, height = self._canvas(config.inference.canvas)
        inputs = prepare_inputs(mask, style, names, size, self.vocabulary.reader(classes, snap, nearest_class), width,
                                height, style_labels)
        factor = self.config.autoencoder.factor
        sizes = [tuple(factor * round(planned.scale * side / factor) for side in (width, height))
                 for planned in plan.rounds]
        maps = inputs.style_labels
        if maps is None and plan.color_by_class:
            maps = np.stack([self._segmenter.segment(photo).labels for photo in inputs.styles])
        pairs = None if maps is None else list(zip(inputs.masks, maps, strict=True))
        self._load_mean(weights)

        def noise(number, shape):
            return np.stack([draw_noise(seed, name, number, shape) for name in inputs.names])

        def condition(height, width):
            return self._condition(inputs.masks_at(factor * width, factor * height), height, width)

        with announce_compilation(f"the networks for {width}x{height} pictures"):
            for step in refine(self._autoencoder, condition, self.schedule, inputs.styles, plan, sizes, noise, pairs):
                if on_step is not None:
                    on_step(step)
        return inputs.finish(step.pictures)

    def networks(self, ensemble: bool | list[float] = True) -> tuple[Autoencoder, UNet]:
        """The networks themselves; `ensemble` says which mean of the checkpoints the UNet holds, as in `infer`."""
        self._load_mean(ensemble_weights(ensemble, len(self.checkpoints)))
        return self._autoencoder, self._unet

    @functools.cached_property
    def _segmenter(self):
        """Finds classes in style photos; always the small one: pictures must not depend on what is installed."""
        return open_segmenter("small").for_weights(self.vocabulary)

    def _load_mean(self, weights):
        """Loads the weighted mean of the checkpoints into the UNet, unless it is there already."""
        if weights != self._loaded:
            self._loaded = self._null = None  # should a file turn out to be damaged
            prepare(self._unet, None)
            load_into(self._unet, average(self.checkpoints, weights), self.checkpoints[0].path)
            _prepare(self._unet, self._convolution)
            self._loaded = weights

    def _canvas(self, canvas):
        """Width and height of a recipe's canvas, checked; the network's own for ()."""
        factor, text = self.config.autoencoder.factor, "x".join(map(str, canvas))
        if any(side % factor for side in canvas):
            raise InputError(f"recipe: canvas {text}: expected multiples of {factor}")
        if any(side < own for side, own in zip(canvas, (self.width, self.height), strict=False)):
            raise InputError(f"recipe: canvas {text}: expected at least the network's {self.width}x{self.height}; ask "
                             f"for a smaller result with size")
        return canvas or (self.width, self.height)

    def _condition(self, masks, height, width):
        """The `Conditions` of label maps (N, H, W) for latents of a height and width, in windows where they are large.
        """
        factor, hot = self.config.autoencoder.factor, one_hot_batch(masks, self.num_classes)
        window = self.height // factor, self.width // factor
        if self._reference:
            return ReferenceConditions(self._unet, hot)
        if height <= 2 * window[0] and width <= 2 * window[1]:
            return self._whole_condition(hot, height, width, self._budget)
        places = len(window_starts(height, window[0])) * len(window_starts(width, window[1]))

        def condition(top, left):
            part = hot[:, :, factor * top : factor * (top + window[0]), factor * left : factor * (left + window[1])]
            return self._whole_condition(part, *window, self._budget and self._budget // places)

        return WindowedConditions(condition, window, (height, width))

    def _whole_condition(self, hot, height, width, budget):
        # one batch for both branches fills a GPU better; two cores gain nothing by it
        joint, size = device_name() == "cuda", (height, width)
        null = self._null[1] if self._null and self._null[0] == size else None
        conditions = Conditions(self._unet, hot, height, width, budget, null, joint)
        self._null = size, conditions.null  # serves all pictures of this size to come
        return conditions


def _prepare(network, convolution):
    """Replaces the convolutions of a network whose weights are loaded."""
    if convolution is LeanConvolution:
        store_half(network)
    prepare(network, convolution)


def _is_short(unet):
    """Whether memory is too short for packed weights of a UNet's checkpoint; says so on standard error."""
    free, weights = available_memory(), 4 * sum(math.prod(tensor.shape) for tensor in unet.tensors.values())
    if free is None or free >= _PACKED_MEMORY * weights:
        return False
    print(f"jiidm: {free / 1e9:.1f} GB of memory are free, and packed weights would take it to about "
          f"{_PACKED_MEMORY * weights / 1e9:.1f} GB: computing with low memory, at two thirds of the speed",
          file=sys.stderr, flush=True)
    return True


def load(paths: Paths = "default", device: str = "auto", precision: str = "auto",
         condition_cache_mb: int | None = None, reference: bool = False, low_memory: bool | None = None
         ) -> Generator | BaselineGenerator:
    """Loads whatever the checkpoint is: a `Generator`, or for GauGAN and CLADE a `BaselineGenerator`.

    The arguments are those of `Generator.from_checkpoint`. A baseline is one file, given in a folder or a list, and
    takes none but `paths` and `device`.
    """
    files = _find_files(paths)
    baselines = _baselines(files)
    if not baselines:
        return Generator.from_checkpoint(paths, device, precision, condition_cache_mb, reference, low_memory)
    if len(files) > 1:
        raise InputError(f"{paths}: {len(files)} checkpoints; {baselines[0].name} is a baseline, a model of its own; "
                         f"give that file alone, in a folder or a list of one")
    if precision == "bf16" or reference:
        raise InputError(f"{paths}: a baseline has one way to compute, in fp32; leave precision and reference out")
    from jiidm.baselines.inference import BaselineGenerator

    return BaselineGenerator.from_checkpoint(baselines[0], device)


def _baselines(files):
    """Those of the files that hold a baseline."""
    kinds = {path: open_tensors(path)[1].get("kind") for path in files}
    if all(kind in KINDS for kind in kinds.values()):
        return []
    from jiidm.baselines.config import MODELS

    return [path for path, kind in kinds.items() if kind in MODELS]


def _find_files(paths):
    """The checkpoint files that `paths` names."""
    if isinstance(paths, list | tuple):
        return [Path(p) for p in paths]
    folder = DEFAULT_WEIGHTS if paths == "default" else Path(paths)
    if not folder.is_dir():
        what = "one file" if folder.is_file() else "no such folder"
        raise InputError(f"{folder}: {what}; expected a folder of checkpoints, or a list of files")
    return sorted(folder.glob("*.safetensors"))
