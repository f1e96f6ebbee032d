"""A recipe resolved into rounds with their timesteps, as `jiidm.inference.plan` does. All its checks happen here."""
from __future__ import annotations

import math
from dataclasses import dataclass

from jiidm_onnx.color_transfer import METHODS
from jiidm_onnx.diffusion import SAMPLERS, Guidance, Schedule
from jiidm_onnx.errors import InputError

# for each key of a recipe: what it may be, in words, and the test
_KEYS = {
    "rounds": ("a list of rounds", lambda v: isinstance(v, (list, tuple)) and v),
    "sampler": (" or ".join(SAMPLERS), lambda v: v in SAMPLERS),
    "steps": ("a whole number of at least 1", lambda v: type(v) is int and v >= 1),
    "color_transfer": (" or ".join(METHODS), lambda v: v in METHODS),
    "final_color_transfer": (f'{" or ".join(METHODS)}, or ""', lambda v: v == "" or v in METHODS),
    "final_color_share": ("a number from 0 to 1", lambda v: _is_number(v) and v <= 1),
    "guidance_rescale": ("a number from 0 to 1", lambda v: _is_number(v) and v <= 1),
    "color_by_class": ("false, since only jiidm transfers colours by class", lambda v: v is False),
    "canvas": ("none, since only jiidm draws at other sizes", lambda v: isinstance(v, (list, tuple)) and not v),
}
_ROUND_KEYS = {
    "guidance": ("a number of at least 0", lambda v: _is_number(v)),
    "respacing": ('"ddimN"', lambda v: isinstance(v, str)),
    "start": ("a whole number of at least 1", lambda v: type(v) is int and v >= 1),
    "scale": ("1, since only jiidm draws at other sizes", lambda v: v == 1),
}
_ROUND_DEFAULTS = {"guidance": 3.5, "respacing": "ddim500", "start": 300, "scale": 1.0}  # the paper's


@dataclass(frozen=True)
class RoundPlan:
    """One round: noise to timestep `start`, then visit `timesteps`, descending; a colour transfer before ("": none)."""

    sampler: str
    guidance: Guidance
    start: int
    timesteps: tuple[int, ...]
    color_transfer: str


@dataclass(frozen=True)
class Plan:
    """The rounds in order, and the colour transfer of the last picture with its share, 0 to 1."""

    rounds: tuple[RoundPlan, ...]
    final_color_transfer: str
    final_color_share: float


def make_plan(base: dict, keys: dict | None, schedule: Schedule, rounds: int | list | None = None,
              color_transfer: bool | str = True) -> Plan:
    """Resolves a recipe.

    Args:
        base: the recipe of the export.
        keys: those to replace (None: none).
        schedule: the noise schedule.
        rounds: the first n rounds (None: all), or a list of rounds to take instead.
        color_transfer: whether there is a colour transfer before each round but the first, or its method.

    Raises:
        InputError: a key or a value that cannot be used.
    """
    recipe = _checked({**base, **(keys or {})}, _KEYS, "recipe")
    if keys and recipe["sampler"] == "ddim" and recipe["steps"] != base["steps"]:
        raise InputError(f"recipe: steps {recipe['steps']}: DDIM takes the steps that each round's start index says; "
                         f'leave steps out, or choose the sampler "dpmpp"')
    method = recipe["color_transfer"] if color_transfer is True else color_transfer or ""
    if method and method not in METHODS:
        raise InputError(f"color_transfer {color_transfer!r}: expected True, False or one of {', '.join(METHODS)}")
    chosen = _choose_rounds(rounds, recipe["rounds"])
    planned = [_plan_round(settings, recipe, schedule, method if number else "")
               for number, settings in enumerate(chosen)]
    return Plan(tuple(planned), recipe["final_color_transfer"], recipe["final_color_share"])


def _choose_rounds(rounds, all_rounds):
    """The first `rounds` of the recipe's, or the given ones."""
    rounds = len(all_rounds) if rounds is None else rounds
    if type(rounds) is int:
        if not 1 <= rounds <= len(all_rounds):
            raise InputError(f"rounds {rounds}: expected 1 to {len(all_rounds)}, or a list of rounds")
        return all_rounds[:rounds]
    if not isinstance(rounds, (list, tuple)) or not rounds:
        raise InputError(f"rounds {rounds!r}: expected a number or a list of rounds (guidance, respacing, start)")
    return rounds


def _plan_round(settings, recipe, schedule, color_transfer):
    """The `RoundPlan` of a round's settings; raises InputError where the schedule has no such round."""
    given = settings if isinstance(settings, dict) else {}
    settings = _checked(given and {**_ROUND_DEFAULTS, **given}, _ROUND_KEYS, "a round")
    chain = schedule.respaced(settings["respacing"])
    if settings["start"] >= len(chain):
        raise InputError(f"start index {settings['start']}: expected 1 to {len(chain) - 1} in a chain of "
                         f"{len(chain)} steps")
    start = int(chain[settings["start"]])
    # as in the authors' release, DDIM begins one index below the noise that is there
    timesteps = chain[:settings["start"]][::-1] if recipe["sampler"] == "ddim" else \
        schedule.descent(start, recipe["steps"])
    guidance = Guidance(settings["guidance"], recipe["guidance_rescale"])
    return RoundPlan(recipe["sampler"], guidance, start, tuple(int(t) for t in timesteps), color_transfer)


def _checked(values, keys, where):
    """The values, if they have these keys and each is what it may be; raises InputError."""
    for key in values:
        if key not in keys:
            raise InputError(f"{where}: unknown key {key!r}; known here: {', '.join(keys)}")
    for key, (words, test) in keys.items():
        if key not in values:
            raise InputError(f"{where}: {key} is missing; expected {words}")
        try:
            right = test(values[key])
        except TypeError:  # a list where a word is looked up
            right = False
        if not right:
            raise InputError(f"{where}: {key} {values[key]!r}: expected {words}")
    return values


def _is_number(value):
    return type(value) in (int, float) and 0 <= value < math.inf
