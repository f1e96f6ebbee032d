"""The paper's modules, measured on the pictures of a test folder: what each of them gives alone and with the others,
what the further options of the recipe give, and curves over guidance, start strength and steps.

  python -m benchmarks.ablation --labels TEST --references TRAIN --real VAL

writes measurements.md and the curves (PNG) into docs/ and all figures into benchmarks/results/ablation.json. A section
that stands there for the same weights, pictures and evaluator is not measured again: after a stop, the same command
goes on.
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
from benchmarks.ablation_settings import CURVES, TABLES, settings_of
from benchmarks.gallery import (
    Gallery,
    about_weights,
    add_arguments,
    emptied,
    keep_section,
    kept_figures,
    row_of,
    weights_of,
)
from jiidm import Generator, load
from jiidm.commands.entry import run_tool
from jiidm.config import COLOR_TRANSFERS, to_dict, with_recipe
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder

# ------------------------------------------------------------------------------------------------- making and measuring

class Studio(Gallery):
    """A `Gallery` that makes the pictures of settings, one setting's at a time."""

    def __init__(self, generator, arguments, folder):
        super().__init__(arguments, folder)
        self.generator, self.recipe, self._made = generator, generator.config.inference, None
        self.size = generator.width, generator.height

    def figures(self, setting, tasks):
        """The `Measured` of a setting on some of the tasks, and seconds an image (None where the pictures, but for the
        final transfer, were there already)."""
        pictures, seconds = self._pictures(setting, tasks)
        return self.measured(pictures, tasks), seconds

    def make(self, setting, tasks):
        """Yields lists of tasks with their pictures (PIL), before the transfer of the final one."""
        size = self.generator.batch_size()
        recipe = dataclasses.replace(self.recipe, **{**setting.recipe, "final_color_transfer": ""})
        for start in range(0, len(tasks), size):
            some = tasks[start : start + size]
            yield some, self.generator.infer(
                [task.labels for task in some], [task.reference for task in some], seed=self.given.seed,
                names=[task.stem for task in some], recipe=recipe, **setting.arguments)

    def _pictures(self, setting, tasks):
        """The folder with the pictures of a setting; those before the final transfer serve the settings that follow."""
        made, key, seconds = self.folder / "made", (setting.arguments, setting.recipe, len(tasks)), None
        if key != self._made:
            if self._made is None:  # kernels are compiled before anything is timed
                list(self.make(setting, tasks[: self.generator.batch_size()]))
            self._made, began = (), time.perf_counter()
            with tqdm(total=len(tasks), desc=setting.name, unit="image", mininterval=1, leave=False) as bar:
                emptied(made)
                for some, pictures in self.make(setting, tasks):
                    for task, picture in zip(some, pictures, strict=True):
                        picture.save(made / f"{task.stem}.png")
                    bar.update(len(some))
            self._made, seconds = key, (time.perf_counter() - began) / len(tasks)
        if not setting.final:
            return made, seconds
        files = {task.stem: made / f"{task.stem}.png" for task in tasks}
        return self.transferred(tasks, files, self.size, setting.final, setting.share), seconds


def measure_section(section, studio, tasks):
    """Rows of a section, the terms of its score, how many pictures a row has, and the protocol."""
    rows, base = [], None
    if section == "real":
        named = ((f"real photos{f', {method}' if method else ''}", method) for method in ("", *COLOR_TRANSFERS))
        folders = ((name, studio.transferred(tasks, studio.real.files, studio.size, method)) for name, method in named)
        found = ((name, studio.measured(folder, tasks), None, {}) for name, folder in folders)
    else:
        found = ((s.name, *studio.figures(s, tasks), {} if s.x is None else {"x": s.x, "line": s.line})
                 for s in settings_of(section, studio.generator))
    for name, measured, seconds, more in found:
        rows.append(row_of(name, measured, base, seconds, **more))
        if base is None and section in TABLES:
            base = measured
    return {"rows": rows, "terms": list(measured.score_terms), "pictures": len(tasks), "protocol": studio.said}


def identity(section, studio, tasks):
    """What a section's figures depend on; where all of it is as before they stand."""
    generator, digest = studio.generator, hashlib.sha256()
    files = [file for task in tasks for file in (task.labels, task.reference)]
    files += [studio.real.files[task.stem] for task in tasks] if section == "real" else []
    for file in [*files, *studio.photos]:  # all photos have a part in the Frechet distance
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    about = {
        "segmenter": studio.segmenter, "pictures": digest.hexdigest(),
        "count": len(tasks), "resamples": studio.given.resamples, "size": [generator.width, generator.height],
    }
    if section != "real":
        settings = [setting._replace(arguments=to_plain(setting.arguments))._asdict()
                    for setting in settings_of(section, generator)]
        about |= {"weights": weights_of(studio.given.checkpoint), "recipe": to_dict(studio.recipe),
                  "seed": studio.given.seed, "settings": settings}
    return json.loads(json.dumps(about))


def to_plain(arguments):
    """Arguments of `infer` as JSON can hold them."""
    rounds = arguments["rounds"]
    return {**arguments, "rounds": rounds if isinstance(rounds, int) else [to_dict(r) for r in rounds]}


# --------------------------------------------------------------------------------------------------------- the command

def main():
    """Reads the arguments, measures the sections that are not there yet, and writes results and curves."""
    arguments = parse_arguments()
    wanted = [s for s in (*TABLES, *CURVES) if s in arguments.only and (s != "real" or arguments.real is not None)]
    _check_arguments(arguments, wanted)
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in measurements.md
    generator = load(arguments.checkpoint)
    if not isinstance(generator, Generator):
        raise InputError(f"{arguments.checkpoint}: a baseline has none of the modules; give the weights of IIDM")
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
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="recipe in place of the checkpoint's own")
    parser.add_argument("--only", nargs="*", choices=(*TABLES, *CURVES), default=(*TABLES, *CURVES), metavar="SECTION",
                        help=f"some of {', '.join((*TABLES, *CURVES))} (default: all)")
    parser.add_argument("--again", action="store_true", help="measure these sections anew though they are there")
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
    """Measures the sections that are not in ablation.json yet, and writes that and the results after each."""
    kept = kept_figures(arguments)["sections"]
    for section, some in tasks.items():
        about, measured = identity(section, studio, some), None
        if section in kept and kept[section].get("identity") == about and not arguments.again:
            print(f"{section}: is in {arguments.output / 'ablation.json'} already")
        else:
            measured = {"identity": about, **measure_section(section, studio, some),
                        **about_weights({"": arguments.checkpoint}), "ensemble": len(studio.generator.checkpoints)}
        written = keep_section(arguments, section, measured)
    if tasks:
        print(f"written: {', '.join(map(str, written))}")


if __name__ == "__main__":
    run_tool(main)
