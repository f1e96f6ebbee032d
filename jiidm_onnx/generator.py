"""Label map and style photo in, landscape picture out: the face of `jiidm.Generator`, computed by onnxruntime."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jiidm_onnx.color_transfer import transfer_color
from jiidm_onnx.diffusion import SAMPLERS, Schedule, draw_noise, guided_denoiser
from jiidm_onnx.errors import InputError
from jiidm_onnx.networks import MANIFEST, Networks
from jiidm_onnx.pictures import (
    fit_photo,
    from_pixels,
    name_of,
    read_label_map,
    read_photo,
    resize_labels,
    resize_photo,
    to_pixels,
)
from jiidm_onnx.recipe import make_plan

Mask = Any  # a path, a PIL image or an H x W integer array
Photo = Any  # a path, a PIL image or an H x W x 3 uint8 array


@dataclass(frozen=True)
class Step:
    """Where an inference stands: the round from 0, the steps done in it and all its steps; `pictures` are PIL images
    after the last step of a round, else None."""

    round: int
    done: int
    steps: int
    pictures: list | None


class Generator:
    """Semantic image synthesis with IIDM (Liu & Chang 2024), from a folder of `jiidm export`.

    `width` and `height` are the size in pixels that its networks work at, `classes` the names of its labels.

    Args:
        folder: what `jiidm export` wrote.
        threads: of onnxruntime (None: one a core).
        providers: onnxruntime's execution providers.

    Raises:
        InputError: the folder has no readable manifest.
    """

    def __init__(self, folder: str | Path, threads: int | None = None,
                 providers: Sequence[str] = ("CPUExecutionProvider",)):
        self.networks = Networks(folder, threads, providers)
        manifest = self.networks.manifest
        self.width, self.height = manifest["picture"]["width"], manifest["picture"]["height"]
        self.classes = [entry["name"] for entry in manifest["classes"]]
        self.schedule = Schedule(manifest["schedule"]["alphas_cumprod"], manifest["schedule"]["prediction"])
        self._null: dict[str, dict[str, np.ndarray]] = {}  # maps of the null condition, by UNet

    def describe(self) -> str:
        """A line for each checkpoint that was exported."""
        return "\n".join(f"{w['file']}: {w['kind']}, step {w['step']}, weight {w['weight']:.4g}, sha256 {w['sha256']}"
                         for w in self.networks.manifest["weights"])

    def check(self) -> list[str]:
        """Reads, checks and loads every network; returns their names, raises InputError for the first bad one."""
        names = list(self.networks.manifest["networks"])
        for name in names:
            self.networks.load(name)
        return names

    def infer(
        self,
        mask: Mask | Sequence[Mask],
        style: Photo | Sequence[Photo],
        rounds: int | list[dict] | None = None,
        color_transfer: bool | str = True,
        ensemble: bool | list[float] = True,
        *,
        recipe: dict | None = None,
        seed: int = 0,
        size: str | tuple[int, int] = "model",
        names: Sequence[str] | None = None,
        on_step: Callable[[Step], Any] | None = None,
    ) -> Image.Image | list[Image.Image]:
        """Draws the landscape of a label map in the style of a photo.

        Args:
            mask: label map: a path, a PIL image or an array (H, W integers), or a list of them.
            style: style photo: a path, a PIL image or an array (H, W, 3 uint8), or a list as long as the masks'. It is
                cropped to the networks' aspect.
            rounds: the first n rounds of the recipe (None: all), or a list of rounds (dicts).
            color_transfer: whether there is a colour transfer before each round but the first, or its method.
            ensemble: True (the mean that was exported), False (the last UNet), or the weights of the exported mean.
            recipe: keys that replace those of the export.
            seed: of the noise. Seed, name and inputs give the noise of `jiidm.Generator`.
            size: of the result: "model", "mask" (each mask's own) or (width, height) in pixels.
            names: what each picture's noise is drawn for, with the seed (None: a mask's file name, "" for others).
            on_step: called with a `Step` after every step. What it raises ends the call.

        Returns:
            An RGB picture, or a list of them where masks came as a list.

        Raises:
            InputError: anything that cannot be used. A recipe is checked before files are read.
        """
        plan = make_plan(self.networks.manifest["recipe"], recipe, self.schedule, rounds, color_transfer)
        unet = self._choose_unet(ensemble)
        single = not isinstance(mask, (list, tuple))
        masks: Any = [mask] if single else mask
        styles: Any = [style] if single else style
        if not isinstance(styles, (list, tuple)) or len(masks) != len(styles) or not masks:
            raise InputError("mask and style: expected one of each, or two lists of equal length")
        fixed = isinstance(size, tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
        if not fixed and size not in ("model", "mask"):
            raise InputError(f'size {size!r}: expected "model", "mask" or a width and a height')
        names = [name_of(m) for m in masks] if names is None else names
        if isinstance(names, str) or len(names) != len(masks):
            raise InputError(f"names {names!r}: expected a list of {len(masks)}, one for each mask")
        labels = [read_label_map(m, len(self.classes)) for m in masks]
        photos = np.stack([fit_photo(read_photo(s), self.width, self.height) for s in styles])
        resized = np.stack([resize_labels(label, self.width, self.height) for label in labels])

        for step in self._refine(unet, resized, photos, plan, seed, names):
            if on_step is not None:
                on_step(step)
        pictures = []
        for picture, label in zip(step.pictures, labels, strict=True):
            wanted = size if fixed else label.shape[::-1] if size == "mask" else picture.size
            pictures.append(picture if picture.size == wanted else picture.resize(wanted, Image.Resampling.LANCZOS))
        return pictures[0] if single else pictures

    def segment(self, photo: Photo, size: tuple[int, int] | None = None) -> np.ndarray:
        """Predicts the class of each pixel of a photo.

        Args:
            photo: a path, a PIL image or an array (H, W, 3 uint8).
            size: (height, width) of the label map (None: the photo's).

        Returns:
            The labels, height x width uint8.
        """
        photo, own = read_photo(photo), self.networks.manifest["segmenter"]
        picture = from_pixels(resize_photo(photo, own["width"], own["height"])[None])
        sides = np.array(photo.shape[:2] if size is None else size, np.int32)
        return self.networks.run("segmenter", picture=picture, size=sides)["labels"][0].astype(np.uint8)

    def _choose_unet(self, ensemble):
        """The prefix of the UNet's files; raises InputError for a mean that was not exported."""
        exported = np.asarray(self.networks.manifest["ensemble"], np.float64)
        if ensemble is True:
            return "unet"
        if ensemble is False:
            return "last" if "last-encode" in self.networks.manifest["networks"] else "unet"
        try:
            weights = np.asarray(ensemble, np.float64)
            same = weights.shape == exported.shape and np.allclose(weights / weights.sum(), exported, atol=1e-6)
        except (TypeError, ValueError):
            same = False
        if not same:
            raise InputError(f"ensemble {ensemble!r}: expected True, False or {exported.tolist()}, the weights of the "
                             f"export; export another mean with `jiidm export --ensemble`")
        return "unet"

    def _predictor(self, unet, labels):
        """The function (z, t, conditional, null) -> predictions, for label maps (N, H, W) at the networks' size."""
        run = self.networks.run
        maps = run(f"{unet}-condition", labels=labels.astype(np.int32))
        if unet not in self._null:
            nothing = np.full((1, self.height, self.width), self.networks.manifest["no_class"], np.int32)
            self._null[unet] = run(f"{unet}-condition", labels=nothing)

        def predict(z, t, conditional, null):
            encoded = run(f"{unet}-encode", latents=z, timestep=np.array([t], np.int32))
            branches = [maps] * conditional + [self._null[unet]] * null
            return [run(f"{unet}-decode", **encoded, **branch)["prediction"] for branch in branches]

        return predict

    def _refine(self, unet, labels, styles, plan, seed, names):
        """Runs the rounds of a plan for a batch (the paper's section 3); yields a `Step` after every step."""
        run, predict, pictures = self.networks.run, self._predictor(unet, labels), styles
        for number, planned in enumerate(plan.rounds):
            pictures = _transfer_each(pictures, styles, planned.color_transfer)
            latents = run("encoder", picture=from_pixels(pictures))["latents"]
            noise = np.stack([draw_noise(seed, name, number, latents.shape[1:]) for name in names])
            z = self.schedule.add_noise(latents, noise, planned.start)
            denoise = guided_denoiser(predict, self.schedule, planned.guidance)
            steps = len(planned.timesteps)
            sampler = SAMPLERS[planned.sampler](denoise, self.schedule, z, planned.timesteps)
            for done, following in enumerate(sampler, 1):
                z = following
                if done < steps:
                    yield Step(number, done, steps, None)
            pictures = to_pixels(run("decoder", latents=z)["picture"])
            if number == len(plan.rounds) - 1:
                pictures = _transfer_each(pictures, styles, plan.final_color_transfer, plan.final_color_share)
            yield Step(number, steps, steps, [Image.fromarray(picture) for picture in pictures])


def _transfer_each(pictures, styles, method, share=1.0):
    """The pictures after a colour transfer from their styles; "" is none."""
    if not method:
        return pictures
    return np.stack([transfer_color(p, s, method, share) for p, s in zip(pictures, styles, strict=True)])


def default_folder() -> Path | None:
    """The folder of the export that this copy of the package lies in; None where it lies elsewhere."""
    folder = Path(__file__).resolve().parent.parent
    return folder if (folder / MANIFEST).is_file() else None
