"""The settings that the ablation measures: rows of its tables and points of its curves."""
from typing import NamedTuple

import numpy as np

from jiidm.config import COLOR_TRANSFERS, RoundConfig

TABLES, CURVES = ("real", "modules", "options"), ("guidance", "start", "steps")
GUIDANCE = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0)
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SHARES = (0.4, 0.6)
STEPS = (10, 20, 50, 100, 200, 300)
OPTIONS = (
    ("guidance rescale 0.3", {"guidance_rescale": 0.3}), ("guidance rescale 0.7", {"guidance_rescale": 0.7}),
)
# the paper's guidance and starts, in chains of 50 steps as the default recipe has them
PAPER_ROUNDS = [RoundConfig(3.5, "ddim50", 30), RoundConfig(3.7, "ddim50", 32), RoundConfig(3.7, "ddim50", 20)]
PAPER_OPTIONS = {"guidance_rescale": 0.0, "sampler": "ddim"}
ONE_ROUND = {"rounds": 1, "color_transfer": False, "ensemble": False}


class Setting(NamedTuple):
    """A row of a table or a point of a curve.

    Attributes:
        name: of the row.
        arguments: for `Generator.infer`.
        recipe: the keys of the recipe that differ.
        final, share: method and share, 0 to 1, of the final colour transfer; "" is none.
        x: the place on the curve.
        line: which of several curves.
    """

    name: str
    arguments: dict
    recipe: dict = {}
    final: str = ""
    share: float = 1.0
    x: float | None = None
    line: str = ""


def list_settings(section, generator):
    """The `Setting`s of a section; a table compares the others with the first."""
    rounds = generator.config.inference.rounds
    if section == "modules":
        return _modules(generator.config.inference, len(generator.checkpoints) > 1)
    if section == "options":
        return [Setting("one round", ONE_ROUND), *(Setting(name, ONE_ROUND, recipe) for name, recipe in OPTIONS)]
    return {"guidance": _guidance, "start": _starts, "steps": _steps}[section](rounds[0], generator.schedule)


def _modules(recipe, several):
    rounds = len(recipe.rounds)
    refined = {"rounds": rounds, "color_transfer": False, "ensemble": False}
    together = {"rounds": rounds, "color_transfer": True, "ensemble": several}
    found = [Setting("one round", ONE_ROUND)]
    found += _ends("one round", ONE_ROUND)
    if several:
        found.append(Setting("one round, ensemble", {**ONE_ROUND, "ensemble": True}))
    if rounds > 1:
        found.append(Setting(f"{rounds} rounds", refined))
        if several:
            found.append(Setting(f"{rounds} rounds, colour transfer between", {**refined, "color_transfer": True}))
        found.append(Setting("all together", together))
        found += _ends("all together", together)
        found += [Setting(f"all together, {method} between", {**together, "color_transfer": method})
                  for method in COLOR_TRANSFERS if method != recipe.color_transfer]
    paper = {"rounds": PAPER_ROUNDS, "color_transfer": "reinhard", "ensemble": several}
    name = "the paper's three rounds in chains of 50 steps, reinhard between"
    return [*found, Setting(name, paper, PAPER_OPTIONS),
            Setting(f"{name} and at the end", paper, PAPER_OPTIONS, final="reinhard")]


def _ends(name, arguments):
    return [*(Setting(f"{name}, {method} at the end", arguments, final=method) for method in COLOR_TRANSFERS),
            *(Setting(f"{name}, {share:g} of transport at the end", arguments, final="transport", share=share)
              for share in SHARES)]


def _guidance(first, _):
    return [Setting(f"guidance {scale:g}", {**ONE_ROUND, "rounds": [RoundConfig(scale, first.respacing, first.start)]},
                    x=scale) for scale in GUIDANCE]


def _starts(first, schedule):
    length = len(schedule.respaced(first.respacing))
    found = []
    for strength in STRENGTHS:
        start = min(max(1, round(strength * length)), length - 1)
        arguments = {**ONE_ROUND, "rounds": [RoundConfig(first.guidance, first.respacing, start)]}
        found.append(Setting(f"start {start} of {length}", arguments, x=start / length))
    return found


def _steps(first, schedule):
    """DDIM on chains that leave about so many steps from the first round's start, and DPM-Solver++."""
    timestep = int(schedule.respaced(first.respacing)[first.start])
    found = []
    for steps in STEPS:
        stride = max(1, round(timestep / steps))
        respacing = f"ddim{-(-len(schedule) // stride)}"
        start = int(np.abs(schedule.respaced(respacing) - timestep).argmin())
        arguments = {**ONE_ROUND, "rounds": [RoundConfig(first.guidance, respacing, start)]}
        found.append(Setting(f"DDIM, {start} steps", arguments, {"sampler": "ddim"}, x=start, line="DDIM"))
    for steps in STEPS:
        arguments, recipe = {**ONE_ROUND, "rounds": [first]}, {"sampler": "dpmpp", "steps": steps}
        found.append(Setting(f"DPM-Solver++, {steps} steps", arguments, recipe, x=steps, line="DPM-Solver++"))
    return found
