"""The plan of an inference: a recipe resolved into rounds with their timesteps. All checks of a recipe happen here."""
from dataclasses import dataclass

from jiidm.config import COLOR_TRANSFERS, InferenceConfig, RoundConfig, check_recipe, from_dict
from jiidm.diffusion.guidance import Guidance
from jiidm.diffusion.schedule import Schedule
from jiidm.system.errors import InputError


@dataclass(frozen=True)
class RoundPlan:
    """One round: noise the latents to timestep `start`, then visit `timesteps`, descending, with `sampler`.

    `color_transfer` is the method for the picture before the round ("": none). The picture is `scale` times as large
    as the canvas.
    """

    sampler: str
    guidance: Guidance
    start: int
    timesteps: tuple[int, ...]
    color_transfer: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """The rounds in order, and the colour transfer of the last picture: its method ("": none) and share, 0 to 1.

    `color_by_class`: all transfers go from class to class, which needs label maps of the styles.
    """

    rounds: tuple[RoundPlan, ...]
    final_color_transfer: str = ""
    final_color_share: float = 1.0
    color_by_class: bool = False


def make_plan(
    recipe: InferenceConfig,
    schedule: Schedule,
    rounds: int | list | tuple | None = None,
    color_transfer: bool | str = True,
) -> Plan:
    """Resolves a recipe into a `Plan`.

    Args:
        recipe: the rounds, sampler and options.
        schedule: the network's noise schedule.
        rounds: the first n rounds of the recipe (None: all), or a list of `RoundConfig` or dicts to take instead.
        color_transfer: whether there is a colour transfer before each round but the first, or its method.

    Raises:
        InputError: a value of any of them that cannot be used.
    """
    check_recipe(recipe)
    method = _choose_transfer(color_transfer, recipe)
    planned = [
        _plan_round(settings, recipe, schedule, method if number else "")
        for number, settings in enumerate(_choose_rounds(rounds, recipe.rounds))
    ]
    scales = [each.scale for each in planned]
    if scales != sorted(scales):
        raise InputError(f"rounds: their scales are {', '.join(f'{s:g}' for s in scales)}; a round cannot shrink the "
                         f"picture of the round before")
    transfers = recipe.final_color_transfer or any(each.color_transfer for each in planned)
    by_class = recipe.color_by_class and bool(transfers)
    return Plan(tuple(planned), recipe.final_color_transfer, recipe.final_color_share, by_class)


def _choose_rounds(rounds, recipe):
    """The first `rounds` of the recipe (None: all), or the given settings as `RoundConfig`s."""
    if rounds is None:
        rounds = len(recipe)
    if isinstance(rounds, int) and not isinstance(rounds, bool):
        if not 1 <= rounds <= len(recipe):
            raise InputError(f"rounds {rounds}: expected 1 to {len(recipe)}, or a list of round settings")
        return recipe[:rounds]
    if not isinstance(rounds, list | tuple) or not rounds:
        raise InputError(f"rounds {rounds!r}: expected a number or a list of settings (guidance, respacing, start)")
    return [r if isinstance(r, RoundConfig) else from_dict(RoundConfig, r, f"rounds[{i}]")
            for i, r in enumerate(rounds)]


def _choose_transfer(color_transfer, recipe):
    """The method of colour transfer; "" for none."""
    if color_transfer is False:
        return ""
    method = recipe.color_transfer if color_transfer is True else color_transfer
    if method not in COLOR_TRANSFERS:
        raise InputError(
            f"color_transfer {color_transfer!r}: expected True, False or one of {', '.join(COLOR_TRANSFERS)}"
        )
    return method


def _plan_round(settings, recipe, schedule, color_transfer):
    """The `RoundPlan` of a `RoundConfig`; raises InputError where the schedule has no such round."""
    if not 0 <= settings.guidance < float("inf"):
        raise InputError(f"guidance {settings.guidance:g}: expected a number of at least 0")
    chain = schedule.respaced(settings.respacing)
    if not 0 < settings.start < len(chain):
        raise InputError(
            f"start index {settings.start}: expected 1 to {len(chain) - 1} in a chain of {len(chain)} steps"
        )
    start = int(chain[settings.start])
    # as in the authors' release, DDIM begins one index below the noise that is there
    below = chain[: settings.start][::-1]
    timesteps = below if recipe.sampler == "ddim" else schedule.descent(start, recipe.steps)
    guidance = Guidance(settings.guidance, recipe.guidance_rescale)
    return RoundPlan(recipe.sampler, guidance, start, tuple(int(t) for t in timesteps), color_transfer, settings.scale)
