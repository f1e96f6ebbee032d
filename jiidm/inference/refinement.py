"""The rounds of inference: image-to-image from the style photo, then from each result (the paper's refinement)."""
import hashlib

import numpy as np

from jiidm.config import SAMPLERS, RoundConfig, from_dict
from jiidm.diffusion.samplers import round_timesteps, translate
from jiidm.files import InputError
from jiidm.inference.color_transfer import transfer_color
from jiidm.pictures import from_pixels, to_pixels
from jiidm.runtime import jt


def chosen_rounds(rounds, recipe):
    """The settings of each round: the first `rounds` of the recipe, or a list of `RoundConfig` or dicts as given."""
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


def noise_for(seed, name, number, shape):
    """Standard normal noise (shape, float32) of one image in one round: a function of seed, name and round alone."""
    key = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big"))).standard_normal(shape, np.float32)


def refine(autoencoder, denoiser, schedule, styles, rounds, names, seed, color_transfer, solver_steps):
    """Runs the rounds for a batch and yields after every step.

    styles is N, H, W, 3 uint8; color_transfer a method's name or None; solver_steps as in `translate`. Yields (round,
    steps done, steps of the round, pictures), pictures (N, H, W, 3 uint8) being None but after the last step of a
    round.
    """
    source = styles
    for number, settings in enumerate(rounds):
        if number and color_transfer:
            source = np.stack([
                transfer_color(picture, style, color_transfer) for picture, style in zip(source, styles, strict=True)
            ])
        with jt.no_grad():  # never around a yield: the caller would run under it
            latent = autoencoder.encode(jt.array(from_pixels(source)))
        noise = jt.array(np.stack([noise_for(seed, name, number, latent.shape[1:]) for name in names]))
        timesteps = round_timesteps(schedule, settings, solver_steps)
        denoiser.prepare(timesteps)
        steps = len(timesteps)
        sampling = translate(denoiser, schedule, latent, noise, settings, solver_steps)
        for left, latent in sampling:  # noqa: B007 - the last latent counts
            if left:
                yield number, steps - left, steps, None
        with jt.no_grad():
            source = to_pixels(autoencoder.decode(latent).numpy())
        yield number, steps, steps, source
