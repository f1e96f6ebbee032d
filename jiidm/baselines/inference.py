"""Pictures of GauGAN and CLADE: label map and style photo in, picture out, called as `jiidm.generator.Generator` is."""
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from jiidm.baselines.encoder import style_input
from jiidm.baselines.layers import spectral_layers
from jiidm.baselines.networks import baseline_of, layout_arrays, layout_of, load_baseline
from jiidm.data.inputs import prepare_inputs
from jiidm.data.pictures import to_pixels
from jiidm.inference.refinement import Step
from jiidm.system.errors import InputError
from jiidm.system.runtime import announce_compilation, jt, use_device

# IIDM's arguments of `infer`: the values that ask a baseline for nothing, and why it refuses others
_ALLOWED = {"rounds": (None, 1), "color_transfer": (True, False), "ensemble": (True, False), "recipe": (None, {}),
            "style_labels": (None,)}
_WHY = {"rounds": "makes a picture in one pass, there is nothing to refine",
        "color_transfer": "makes a picture in one pass, without a colour transfer between passes",
        "ensemble": "is one network", "recipe": "has no recipe",
        "style_labels": "has no colour transfer"}


class BaselineGenerator:
    """Semantic image synthesis with GauGAN (Park et al. 2019) or CLADE (Tan et al. 2021).

    Make one with `jiidm.load` or `BaselineGenerator.from_checkpoint`. `width` and `height` are the size in pixels that
    it works at, `num_classes` how many labels it knows, `config` the `BaselineRun` that it was trained with, `model`
    "gaugan" or "clade".
    """

    def __init__(self, checkpoint):
        """checkpoint is a `Checkpoint` from `load_baseline`. Raises InputError where it is not one whole network."""
        self.checkpoint, self.config, self.model = checkpoint, checkpoint.config, checkpoint.kind
        self.width, self.height = self.config.image.width, self.config.image.height
        self.num_classes = self.config.generator.num_classes
        self._network = baseline_of(checkpoint)
        for layer in spectral_layers(self._network):
            layer.fix()

    @classmethod
    def from_checkpoint(cls, path, device="auto"):
        """Loads the weights.

        Args:
            path: a checkpoint of GauGAN or CLADE, or a folder with one.
            device: "auto" (CUDA where it works), "cpu" or "cuda".

        Raises:
            InputError: weights that are missing, unreadable, of another network, or have NaN.
        """
        use_device(device)
        path = Path(path)
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if len(files) != 1:
            raise InputError(f"{path}: {len(files)} checkpoints in it; expected one, of gaugan or clade")
        return cls(load_baseline(files[0]))

    def describe(self):
        """A line: what the checkpoint is, and its step."""
        return self.checkpoint.describe()

    def batch_size(self):
        """How many pictures to ask for at a time; they are computed one by one."""
        return 4

    def infer(self, mask, style, rounds=None, color_transfer=True, ensemble=True, *, recipe=None, seed=0, size="model",
              names=None, on_step=None, style_labels=None):
        """Draws the landscape of a label map in the style of a photo, as `Generator.infer` does.

        Args:
            mask, style, size, names: as there.
            rounds, color_transfer, ensemble, recipe, style_labels: are IIDM's; they may be left out or be off, and have
                no effect.
            seed: with a picture's name it draws the style from the distribution that the encoder gives for the photo
                (None: its mean).
            on_step: called once, with a `Step` that has the pictures.

        Raises:
            InputError: anything that cannot be used.
        """
        self._refuse(rounds=rounds, color_transfer=color_transfer, ensemble=ensemble, recipe=recipe,
                     style_labels=style_labels)
        inputs = prepare_inputs(mask, style, names, size, self.num_classes, self.width, self.height)
        with announce_compilation(f"{self.checkpoint.kind} for {self.width}x{self.height} pictures"):
            pixels = self._pictures(inputs.masks, inputs.styles, inputs.names, seed)
        images = [Image.fromarray(p) for p in pixels]
        if on_step is not None:
            on_step(Step(0, 1, 1, images, lambda: pixels))
        return inputs.finish(images)

    def _refuse(self, **settings):
        for name, value in settings.items():
            if repr(value) not in map(repr, _ALLOWED[name]):  # as written: True is not 1
                raise InputError(f"{name} {value!r}: {self.checkpoint.kind} {_WHY[name]}; leave {name} out")

    def _pictures(self, labels, photos, names, seed):
        """N, H, W uint8 and N, H, W, 3 uint8 at the network's size -> N, H, W, 3 uint8."""
        generator = self.config.generator
        drawn = []
        for i, name in enumerate(names):  # one by one: no picture depends on another, not even by rounding
            layout = layout_of(*layout_arrays(labels[i : i + 1], generator), generator)
            styles, noise = None, None
            if generator.style_channels:
                styles = jt.array(style_input(photos[i : i + 1], generator.style_size))
                if seed is not None:
                    noise = jt.array(_noise(seed, name, generator.style_channels))
            with jt.no_grad():
                drawn.append(self._network(layout, styles, noise)[0].numpy())
        return to_pixels(np.concatenate(drawn))


def _noise(seed, name, channels):
    """Standard normal noise (1 x channels, float32) of one picture: a function of seed and name alone."""
    key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big"))).standard_normal((1, channels), np.float32)
