"""Refinement (the paper's section 3): image-to-image from the style photo, then from the result of each round.

A round is: [colour transfer] -> [enlarge] -> E -> noise to z_T -> sampler -> D -> picture.
"""
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from jiidm.data.labels import resize_labels
from jiidm.data.pictures import fit_photo, from_pixels, to_pixels
from jiidm.diffusion.guidance import guided_denoiser
from jiidm.diffusion.samplers import SAMPLERS
from jiidm.inference.color_transfer import transfer_color
from jiidm.system.runtime import jt

_AT_A_TIME = 4  # pictures in the autoencoder: of 512x384 pixels each needs some GB


@dataclass(frozen=True)
class Step:
    """Where an inference stands after a step.

    `round` counts from 0, `done` are the steps done in it and `steps` all its steps. `pictures` is a list of PIL images
    after the last step of a round, else None.
    """

    round: int
    done: int
    steps: int
    pictures: list | None
    draw_preview: Callable

    def preview(self) -> np.ndarray:
        """Small RGB pictures of the latents (N, h, w, 3 uint8), one pixel a latent; no network runs for them."""
        return self.draw_preview()


def refine(autoencoder, condition, schedule, styles, plan, sizes, noise, label_pairs=None):
    """Runs the rounds of a plan for a batch.

    Args:
        autoencoder: an `Autoencoder`.
        condition: height and width of latents -> `Conditions` of the masks.
        schedule: a `Schedule`.
        styles: the style photos (N, H, W, 3 uint8).
        plan: a `Plan`.
        sizes: width and height of each round's picture, in pixels.
        noise: (round, shape C, H, W) -> standard normal noise (N, C, H, W float32).
        label_pairs: for colour transfers by class, the label maps of each picture and of its style, N pairs of H x W
            uint8 (None: the transfers take pictures as wholes).

    Yields:
        A `Step` after every step.
    """
    pictures, colors, conditions = styles, None, None
    label_pairs = label_pairs or [(None, None)] * len(styles)
    for number, (planned, size) in enumerate(zip(plan.rounds, sizes, strict=True)):
        pictures = _transfer_each(pictures, styles, label_pairs, planned.color_transfer)
        grown = np.stack([fit_photo(picture, *size) for picture in pictures])
        with jt.no_grad():  # never around a yield: the caller would run under it
            latents = _in_parts(autoencoder.encode, jt.array(from_pixels(grown)))
        if conditions is None or size != sizes[number - 1]:
            conditions = condition(*latents.shape[2:])
        colors = colors or LatentColors(latents, styles)  # of the first round: the style photos' own latents
        steps = len(planned.timesteps)
        for left, z in sample_round(conditions, schedule, planned, latents, noise(number, latents.shape[1:])):
            done = steps - left
            if left:
                signal = schedule.alphas_cumprod[planned.timesteps[done]]
                yield Step(number, done, steps, None, functools.partial(colors.draw, z, signal))
        with jt.no_grad():
            pictures = to_pixels(_in_parts(autoencoder.decode, z).numpy())
        if number == len(plan.rounds) - 1:
            pictures = _transfer_each(pictures, styles, label_pairs, plan.final_color_transfer, plan.final_color_share)
        images = [Image.fromarray(picture) for picture in pictures]
        yield Step(number, steps, steps, images, functools.partial(colors.draw, z, 1.0))


def _in_parts(function, batch):
    """`function` of a batch, a few samples at a time."""
    if len(batch) <= _AT_A_TIME:
        return function(batch)
    parts = []
    for first in range(0, len(batch), _AT_A_TIME):
        parts.append(function(batch[first : first + _AT_A_TIME]))
        parts[-1].sync()
    return jt.concat(parts)


def sample_round(conditions, schedule, planned, latents, noise):
    """Noises latents to the start of a round and samples from there (image-to-image, the paper's section 3).

    Args:
        conditions: `Conditions` of the masks.
        schedule: a `Schedule`.
        planned: a `RoundPlan`.
        latents, noise: N, C, H, W.

    Yields:
        (steps left, latents) after every step.
    """
    z = schedule.add_noise(latents, jt.array(noise), planned.start)
    conditions.prepare(planned.timesteps)
    denoise = guided_denoiser(conditions.predict, schedule, planned.guidance)
    yield from SAMPLERS[planned.sampler](denoise, schedule, z, planned.timesteps)


def draw_noise(seed, name, number, shape):
    """Standard normal noise (float32) of a shape: a function of the seed, the picture's name and the round's number."""
    key = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    rng = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
    return rng.standard_normal(shape, np.float32)


class LatentColors:
    """A linear map from noised latents to colours: least squares over photos and their latents.

    The autoencoder reproduces photos, so a photo reduced to the latents' size shows what they decode to. The map is
    fitted when the first preview is drawn.

    Args:
        latents: N, C, h, w (Jittor).
        photos: N, H, W, 3 uint8.
    """

    def __init__(self, latents, photos):
        self.latents, self.photos = latents, photos

    @functools.cached_property
    def _moments(self):
        """Means of latents (C) and colours (3), the latents' covariance (C, C), and that with the colours (C, 3)."""
        height, width = self.latents.shape[2:]
        small = np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_AREA) for p in self.photos])
        z, colors = _columns(self.latents), small.reshape(-1, 3).astype(np.float64)
        centred = z - z.mean(0)
        cross = centred.T @ (colors - colors.mean(0))
        return z.mean(0), colors.mean(0), centred.T @ centred / len(z), cross / len(z)

    def draw(self, latents, signal):
        """Pictures (N, h, w, 3 uint8) of latents (N, C, h, w, Jittor) in which `signal`, 0 to 1, is the abar_t."""
        latent_mean, color_mean, covariance, cross = self._moments
        scale, (n, _, height, width) = np.sqrt(signal), latents.shape
        weights = np.linalg.pinv(signal * covariance + (1 - signal) * np.eye(len(covariance))) @ (scale * cross)
        colors = (_columns(latents) - scale * latent_mean) @ weights + color_mean
        return np.clip(np.rint(colors), 0, 255).astype(np.uint8).reshape(n, height, width, 3)


def _columns(latents):
    """N, C, h, w (Jittor) -> N * h * w, C in float64."""
    return latents.numpy().transpose(0, 2, 3, 1).reshape(-1, latents.shape[1]).astype(np.float64)


def _transfer_each(pictures, styles, label_pairs, method, share=1.0):
    """The pictures (N, H, W, 3 uint8) after a colour transfer from their styles; "" is none."""
    if not method:
        return pictures
    height, width = pictures.shape[1:3]
    transferred = []
    for picture, style, (labels, style_labels) in zip(pictures, styles, label_pairs, strict=True):
        if labels is not None:
            labels = resize_labels(labels, width, height)
        transferred.append(transfer_color(picture, style, method, share, labels, style_labels))
    return np.stack(transferred)
