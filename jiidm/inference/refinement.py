"""The rounds of inference: image-to-image from the style photo, then from each result (the paper's refinement)."""
import hashlib

import numpy as np

from jiidm.config import SAMPLERS, RoundConfig, from_dict
from jiidm.data.pictures import from_pixels, to_pixels
from jiidm.diffusion.samplers import round_timesteps, translate
from jiidm.inference.color_transfer import transfer_color
from jiidm.system.errors import InputError
from jiidm.system.runtime import jt


def chosen_rounds(rounds, recipe):
    """The settings of each round: the first `rounds` of the recipe (None: all), or a list of `RoundConfig` or dicts as
    given."""
    if rounds is None:
        rounds = len(recipe)
    if isinstance(rounds, int) and not isinstance(rounds, bool):
        if not 1 <= rounds <= len(recipe):
            raise InputError(f"rounds {rounds}: expected 1 to {len(recipe)}, or a list of round settings")
        return tuple(recipe[:rounds])
    if not isinstance(rounds, list | tuple) or not rounds:
        raise InputError(f"rounds {rounds!r}: expected a number or a list of settings (guidance, respacing, start)")
    return tuple(
        r if isinstance(r, RoundConfig) else from_dict(RoundConfig, r, f"rounds[{i}]") for i, r in enumerate(rounds)
    )


def chosen_solver_steps(sampler, steps, recipe):
    """Evaluations a round of the solver, or None for DDIM, which follows each round's chain.

    sampler: "ddim" or "dpmpp"; steps: a number for the latter; None takes what the recipe, an `InferenceConfig`, says.
    Raises InputError for another sampler, for no number of steps, and for steps of DDIM.
    """
    sampler = recipe.sampler if sampler is None else sampler
    if sampler not in SAMPLERS:
        raise InputError(f"sampler {sampler!r}: expected one of {', '.join(SAMPLERS)}")
    if sampler == "ddim":
        if steps is not None:
            raise InputError(
                f"steps {steps!r}: DDIM takes the steps that each round's start index says; leave steps out, or "
                'choose the sampler "dpmpp"'
            )
        return None
    steps = recipe.steps if steps is None else steps
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise InputError(f"steps {steps!r}: expected a whole number of at least 1")
    return steps


def noise_for(seed, name, number, shape, classes, share):
    """Standard normal noise (shape C, H, W, float32) of one image in one round: a function of seed, name and round, and
    where `share` is above 0 of `classes` (H, W integers).

    Places of one class then have a random vector in common, which makes up `share` of the variance; the variance of
    each place stays 1. The vector of a class does not depend on which others there are.
    """
    key = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    random = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
    white = random.standard_normal(shape, np.float32)
    if not share:
        return white
    vectors = random.standard_normal((int(classes.max()) + 1, shape[0]), np.float32)
    common = vectors[classes].transpose(2, 0, 1)
    return np.float32(np.sqrt(1 - share)) * white + np.float32(np.sqrt(share)) * common


def noise_of_batch(seed, names, classes, share):
    """The function (round, shape C, H, W) -> noise (N, C, H, W float32) of a batch: `noise_for` of each of the N names
    with its classes (N, H, W integers)."""
    def draw(number, shape):
        pairs = zip(names, classes, strict=True)
        return np.stack([noise_for(seed, name, number, shape, its, share) for name, its in pairs])

    return draw


def refine(autoencoder, denoiser, schedule, styles, rounds, noise, color_transfer, solver_steps, final_transfer=None):
    """Runs the rounds for a batch and yields after every step.

    styles is N, H, W, 3 uint8; noise as from `noise_of_batch`; color_transfer a method's name or None, before each
    round but the first, and final_transfer None or (method, share) for the last pictures; solver_steps as in
    `translate`. Yields (round, steps done, steps of the round, pictures), pictures (N, H, W, 3 uint8) being None but
    after the last step of a round.
    """
    source = styles
    for number, settings in enumerate(rounds):
        if number and color_transfer:
            source = _transferred(source, styles, color_transfer)
        with jt.no_grad():  # never around a yield: the caller would run under it
            latent = autoencoder.encode(jt.array(from_pixels(source)))
        drawn = jt.array(noise(number, latent.shape[1:]))
        timesteps = round_timesteps(schedule, settings, solver_steps)
        denoiser.prepare(timesteps)
        steps = len(timesteps)
        sampling = translate(denoiser, schedule, latent, drawn, settings, solver_steps)
        for left, latent in sampling:  # noqa: B007 - the last latent counts
            if left:
                yield number, steps - left, steps, None
        with jt.no_grad():
            source = to_pixels(autoencoder.decode(latent).numpy())
        if final_transfer and number == len(rounds) - 1:
            source = _transferred(source, styles, *final_transfer)
        yield number, steps, steps, source


def _transferred(pictures, styles, method, share=1.0):
    pairs = zip(pictures, styles, strict=True)
    return np.stack([transfer_color(picture, style, method, share) for picture, style in pairs])
