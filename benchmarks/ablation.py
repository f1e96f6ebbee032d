"""The ablation: the paper's modules alone and together, further options of the recipe, and curves over guidance, start
and steps, measured on the pictures of a test folder.

  python -m benchmarks.ablation --labels TEST --references TRAIN --real VAL

writes docs/measurements.md, the curves (PNG) and all figures (benchmarks/results/ablation.json). A section that is in
the JSON for the same weights, pictures and evaluator is not measured again; so the same command goes on after a stop.
"""
import argparse
import dataclasses
import hashlib
import json
import tempfile
import time
import warnings
from pathlib import Path

from tqdm import tqdm

from benchmarks.ablation_report import check_drawing
from benchmarks.ablation_settings import CURVES, TABLES, list_settings
from benchmarks.gallery import (
    Gallery,
    add_arguments,
    describe_origin,
    hash_weights,
    keep_section,
    make_empty,
    make_row,
    read_figures,
)
from jiidm import Generator, load
from jiidm.commands.entry import run_tool
from jiidm.config import COLOR_TRANSFERS, to_dict, with_recipe
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder

# ------------------------------------------------------------------------------------------------- making and measuring

class Studio(Gallery):
    """A `Gallery` that generates the pictures of one `Setting` at a time."""

    def __init__(self, generator, arguments, folder):
        super().__init__(arguments, folder)
        self.generator, self.recipe, self._made = generator, generator.config.inference, None
        self.size = generator.width, generator.height

    def measure_setting(self, setting, tasks):
        """The `Measured` of a setting on the tasks, and seconds an image; None where a setting before it made them."""
        pictures, seconds = self._pictures(setting, tasks)
        return self.measure(pictures, tasks), seconds

    def make(self, setting, tasks):
        """Yields batches of tasks with their pictures (PIL), without the final colour transfer."""
        size = self.generator.batch_size()
        recipe = dataclasses.replace(self.recipe, **{**setting.recipe, "final_color_transfer": ""})
        for start in range(0, len(tasks), size):
            some = tasks[start : start + size]
            yield some, self.generator.infer(
                [task.labels for task in some], [task.reference for task in some], seed=self.given.seed,
                names=[task.stem for task in some], recipe=recipe, **setting.arguments)

    def _pictures(self, setting, tasks):
        """The folder of a setting's pictures. Those before the final transfer are reused by the settings after it."""
        made, key, seconds = self.folder / "made", (setting.arguments, setting.recipe, len(tasks)), None
        if key != self._made:
            if self._made is None:  # kernels are compiled before anything is timed
                list(self.make(setting, tasks[: self.generator.batch_size()]))
            self._made, began = (), time.perf_counter()
            with tqdm(total=len(tasks), desc=setting.name, unit="image", mininterval=1, leave=False) as bar:
                make_empty(made)
                for some, pictures in self.make(setting, tasks):
                    for task, picture in zip(some, pictures, strict=True):
                        picture.save(made / f"{task.stem}.png")
                    bar.update(len(some))
            self._made, seconds = key, (time.perf_counter() - began) / len(tasks)
        if not setting.final:
            return made, seconds
        files = {task.stem: made / f"{task.stem}.png" for task in tasks}
        return self.transfer(tasks, files, self.size, setting.final, setting.share), seconds


def measure_section(section, studio, tasks):
    """Measures a section; returns its rows, the terms of its score, the number of pictures and the protocol."""
    rows, base = [], None
    if section == "real":
        named = ((f"real photos{f', {method}' if method else ''}", method) for method in ("", *COLOR_TRANSFERS))
        folders = ((name, studio.transfer(tasks, studio.real.files, studio.size, method)) for name, method in named)
        found = ((name, studio.measure(folder, tasks), None, {}) for name, folder in folders)
    else:
        found = ((s.name, *studio.measure_setting(s, tasks), {} if s.x is None else {"x": s.x, "line": s.line})
                 for s in list_settings(section, studio.generator))
    for name, measured, seconds, more in found:
        rows.append(make_row(name, measured, base, seconds, **more))
        if base is None and section in TABLES:
            base = measured
    return {"rows": rows, "terms": list(measured.score_terms), "pictures": len(tasks), "protocol": studio.protocol_text}


def identity(section, studio, tasks):
    """All that a section's figures depend on, for JSON; equal identities mean equal figures."""
    generator, digest = studio.generator, hashlib.sha256()
    files = [file for task in tasks for file in (task.labels, task.reference)]
    files += [studio.real.files[task.stem] for task in tasks] if section == "real" else []
    for file in [*files, *studio.photos]:  # the Frechet distance is to all photos
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    about = {
        "segmenter": studio.segmenter, "pictures": digest.hexdigest(),
        "count": len(tasks), "resamples": studio.given.resamples, "size": [generator.width, generator.height],
    }
    if section != "real":
        settings = [setting._replace(arguments=to_plain(setting.arguments))._asdict()
                    for setting in list_settings(section, generator)]
        about |= {"weights": hash_weights(studio.given.checkpoint), "recipe": to_dict(studio.recipe),
                  "seed": studio.given.seed, "settings": settings}
    return json.loads(json.dumps(about))


def to_plain(arguments):
    """Converts arguments of `infer` for JSON."""
    rounds = arguments["rounds"]
    return {**arguments, "rounds": rounds if isinstance(rounds, int) else [to_dict(r) for r in rounds]}


# --------------------------------------------------------------------------------------------------------- the command

def main():
    """Reads the arguments, measures what is missing, and writes results and curves."""
    arguments = parse_arguments()
    wanted = [s for s in (*TABLES, *CURVES) if s in arguments.only and (s != "real" or arguments.real is not None)]
    _check_arguments(arguments, wanted)
    warnings.filterwarnings("ignore", message=".*Frechet")  # measurements.md says it once
    generator = load(arguments.checkpoint)
    if not isinstance(generator, Generator):
        raise InputError(f"{arguments.checkpoint}: a baseline has no modules to measure; give weights of IIDM")
    generator.config = with_recipe(generator.config, arguments.recipe)
    with tempfile.TemporaryDirectory(prefix="jiidm-ablation-") as folder:
        studio = Studio(generator, arguments, Path(folder))
        tasks = {s: studio.tasks[: arguments.limit] if s in CURVES else studio.tasks for s in wanted}
        measure_all(studio, tasks, arguments)
    return 0


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--checkpoint", default="default", help="folder of checkpoints (default: the package's own)")
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml",
                        help="keys of the recipe to replace (default: the checkpoint's)")
    parser.add_argument("--only", nargs="*", choices=(*TABLES, *CURVES), default=(*TABLES, *CURVES), metavar="SECTION",
                        help=f"some of {', '.join((*TABLES, *CURVES))} (default: all)")
    parser.add_argument("--again", action="store_true", help="measure these sections anew")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N label maps for the curves (default: all)")
    return parser.parse_args()


def _check_arguments(arguments, wanted):
    if arguments.limit is not None and arguments.limit < 2:
        raise InputError(f"--limit {arguments.limit}: expected at least 2")
    if set(wanted) & set(CURVES):
        check_drawing()
    for folder in (arguments.output, arguments.docs):
        output_folder(folder)


def measure_all(studio, tasks, arguments):
    """Measures the sections that ablation.json lacks; writes it and the results after each section."""
    kept = read_figures(arguments)["sections"]
    for section, some in tasks.items():
        about, measured = identity(section, studio, some), None
        if section in kept and kept[section].get("identity") == about and not arguments.again:
            print(f"{section}: already in {arguments.output / 'ablation.json'}")
        else:
            measured = {"identity": about, **measure_section(section, studio, some),
                        **describe_origin({"": arguments.checkpoint}), "ensemble": len(studio.generator.checkpoints)}
        written = keep_section(arguments, section, measured)
    if tasks:
        print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_tool(main)
