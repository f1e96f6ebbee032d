"""The paper's modules, measured on the pictures of a test folder: what each of them gives alone and with the others,
what the further options of the recipe give, and curves over guidance, start strength and steps.

  python benchmarks/ablation.py --labels TEST --references TRAIN --real VAL

writes results.md and the curves (PNG) into docs/ and all figures into benchmarks/results/ablation.json. A section that
stands there for the same weights, pictures and evaluator is not measured again: after a stop, the same command goes on.
"""
import argparse
import hashlib
import json
import shlex
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.ablation_report import check_drawing, write_results  # noqa: E402
from benchmarks.ablation_settings import CURVES, ONE_ROUND, TABLES, Setting, evaluations, settings_of  # noqa: E402
from benchmarks.measuring import machine  # noqa: E402
from jiidm import Generator  # noqa: E402
from jiidm.checkpoint import source_of  # noqa: E402
from jiidm.config import COLOR_TRANSFERS, to_dict  # noqa: E402
from jiidm.data.folder import fit_photo, read_photo  # noqa: E402
from jiidm.evaluation import metrics  # noqa: E402
from jiidm.evaluation.measure import FRECHET_RESAMPLES, Protocol, evaluate, resized  # noqa: E402
from jiidm.evaluation.pairing import find_pictures, find_tasks  # noqa: E402
from jiidm.evaluation.weights import load_segmenter  # noqa: E402
from jiidm.files import InputError, output_folder, run_tool, written_whole  # noqa: E402
from jiidm.generator import DEFAULT_WEIGHTS  # noqa: E402
from jiidm.inference.color_transfer import transfer_color  # noqa: E402
from jiidm.labels import colorize, read_label_map, resize_labels  # noqa: E402
from jiidm.pictures import sheet_of  # noqa: E402

# ------------------------------------------------------------------------------------------------- making and measuring

class Studio:
    """Makes the pictures of settings in a temporary folder, one setting's at a time, and measures them.

    `tasks` are the label maps with their references, `real` the `Pictures` of the real photos or None, and `said` is
    the protocol of the last measurement.
    """

    def __init__(self, generator, arguments, folder):
        self.generator, self.given, self.folder = generator, arguments, folder
        self.segmenter = load_segmenter(arguments.segmenter).sha256  # told before any picture is made
        self.tasks, _, problems = find_tasks(arguments.labels, arguments.references)
        _check(problems)
        self.protocol = Protocol(resamples=arguments.resamples,
                                 frechet_resamples=min(arguments.resamples, FRECHET_RESAMPLES))
        self.recipe, self._made, self.real, self.said = generator.config.inference, None, None, {}
        if arguments.real is not None:
            photos = arguments.real / "imgs" if (arguments.real / "imgs").is_dir() else arguments.real
            self.real, problems = find_pictures(photos, self.tasks, one_size=False, extra_allowed=True)
            _check(problems)

    def figures(self, setting, tasks):
        """The `Measured` of a setting on some of the tasks, and seconds an image (None where the pictures, but for the
        final transfer, were there already)."""
        pictures, seconds = self._pictures(setting, tasks)
        return self.measured(pictures, tasks), seconds

    def measured(self, folder, tasks):
        """The `Measured` of a folder of pictures."""
        found = evaluate(folder, self.given.labels, self.given.references, segmenter=self.given.segmenter,
                         keep=self.folder / "statistics", allow_missing=len(tasks) < len(self.tasks),
                         protocol=self.protocol)
        self.said = {name: str(text).replace(str(self.given.references), self.given.references.name)
                     for name, text in found.protocol.items()}
        return found.sets["results"]

    def style(self, task):
        """The reference of a task at the networks' size, H x W x 3 uint8."""
        return fit_photo(read_photo(task.reference), self.generator.width, self.generator.height)

    def make(self, setting, tasks):
        """Yields lists of tasks with their pictures (PIL), before the transfer of the final one."""
        size = self.generator.batch_size()
        self.generator.use_recipe(setting.recipe)
        try:
            for start in range(0, len(tasks), size):
                some = tasks[start : start + size]
                yield some, self.generator.infer(
                    [task.labels for task in some], [task.reference for task in some], seed=self.given.seed,
                    names=[task.stem for task in some], final_color_transfer=False, **setting.arguments)
        finally:
            self.generator.use_recipe(self.recipe)

    def _pictures(self, setting, tasks):
        """The folder with the pictures of a setting; those before the final transfer serve the settings that follow."""
        made, key, seconds = self.folder / "made", (setting.arguments, setting.recipe, len(tasks)), None
        if key != self._made:
            if self._made is None:  # kernels are compiled before anything is timed
                list(self.make(setting, tasks[: self.generator.batch_size()]))
            self._made, began = (), time.perf_counter()
            with tqdm(total=len(tasks), desc=setting.name, unit="image", mininterval=1, leave=False) as bar:
                _emptied(made)
                for some, pictures in self.make(setting, tasks):
                    for task, picture in zip(some, pictures, strict=True):
                        picture.save(made / f"{task.stem}.png")
                    bar.update(len(some))
            self._made, seconds = key, (time.perf_counter() - began) / len(tasks)
        if not setting.final:
            return made, seconds
        files = {task.stem: made / f"{task.stem}.png" for task in tasks}
        return self.transferred(tasks, files, setting.final, setting.share), seconds

    def transferred(self, tasks, files, method, share=1.0):
        """A folder with the pictures `files` (stem to path) at the networks' size, after the share of a transfer by
        method ("": none)."""
        folder = _emptied(self.folder / "transferred")
        for task in tasks:
            picture = resized(read_photo(files[task.stem]), self.generator.width, self.generator.height)
            picture = transfer_color(picture, self.style(task), method, share) if method else picture
            Image.fromarray(picture).save(folder / f"{task.stem}.png")
        return folder


def _emptied(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _check(problems):
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{'; '.join(problems[:3])}{more}; mend the folders first: every label map is to be measured")


def row_of(name, measured, base, seconds=None, **more):
    """A row for the JSON: figures, and differences from the `Measured` base where there is one, as [value, low, high].

    Both have the same resamples of the same pictures, so that the differences are paired.
    """
    differences = {}
    for key, figure in measured.figures.items() if base is not None else ():
        count = min(len(measured.replicates[key]), len(base.replicates[key]))
        apart = measured.replicates[key][:count] - base.replicates[key][:count]
        differences[key] = list(metrics.figure(figure.value - base.figures[key].value, apart))
    figures = {key: list(figure) for key, figure in measured.figures.items()}
    return {"name": name, "figures": figures, "differences": differences, "seconds": seconds, **more}


def measure_section(section, studio, tasks):
    """Rows of a section, the terms of its score, how many pictures a row has, and the protocol."""
    rows, base = [], None
    if section == "real":
        named = ((f"real photos{f', {method}' if method else ''}", method) for method in ("", *COLOR_TRANSFERS))
        found = ((name, studio.measured(studio.transferred(tasks, studio.real.files, method), tasks), None, {})
                 for name, method in named)
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
    for task in tasks:
        files = [task.labels, task.reference]
        for file in [*files, studio.real.files[task.stem]] if section == "real" else files:
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


def weights_of(checkpoint):
    """{file: sha256} of a folder of checkpoints."""
    folder = DEFAULT_WEIGHTS if checkpoint == "default" else Path(checkpoint)
    sources = [source_of(path) for path in sorted(folder.glob("*.safetensors"))]
    return {source.file: source.sha256 for source in sources}


def write_sheet(path, studio, count):
    """Writes a sheet of the first `count` label maps: style, label map, one round, all together, and the latter after
    the transfer of the final picture; returns nothing."""
    tasks, size = studio.tasks[:count], (studio.generator.width, studio.generator.height)
    rows = [[studio.style(task) for task in tasks],
            [colorize(resize_labels(read_label_map(task.labels), *size)) for task in tasks]]
    titles = ["style", "label map", "one round", "all together", "all together, transport at the end"]
    together = {"rounds": None, "color_transfer": True, "ensemble": True}
    for title, arguments in zip(titles[2:], (ONE_ROUND, together), strict=False):
        rows.append([np.asarray(p) for _, made in studio.make(Setting(title, arguments), tasks) for p in made])
    rows.append([transfer_color(p, style, "transport") for p, style in zip(rows[-1], rows[0], strict=True)])
    with written_whole(path) as temporary:
        Image.fromarray(sheet_of(rows, titles)).save(temporary, quality=92)


# --------------------------------------------------------------------------------------------------------- the command

def main():
    """Reads the arguments, measures the sections that are not there yet, and writes results and curves."""
    arguments = parse_arguments()
    wanted = [s for s in (*TABLES, *CURVES) if s in arguments.only and (s != "real" or arguments.real is not None)]
    _check_arguments(arguments, wanted)
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in results.md
    generator = Generator.from_checkpoint(arguments.checkpoint, recipe=arguments.recipe)
    if not isinstance(generator, Generator):
        raise InputError(f"{arguments.checkpoint}: a baseline has none of the modules; give the weights of IIDM")
    with tempfile.TemporaryDirectory(prefix="jiidm-ablation-") as folder:
        studio = Studio(generator, arguments, Path(folder))
        tasks = {s: studio.tasks[: arguments.limit] if s in CURVES else studio.tasks for s in wanted}
        if arguments.dry_run:
            return print_plan(studio, tasks)
        measure_all(studio, tasks, arguments)
        if arguments.sheet is not None:
            write_sheet(arguments.sheet, studio, arguments.sheet_count)
            print(f"written: {arguments.sheet}")
    return 0


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR", help="test folder with label_to_img.json")
    parser.add_argument("--references", required=True, type=Path, metavar="DIR",
                        help="folder of the style photos, or one that has imgs/")
    parser.add_argument("--real", type=Path, metavar="DIR",
                        help="real photos of the same label maps: the ceiling, and what the transfers do to photos")
    parser.add_argument("--checkpoint", default="default", help="folder of checkpoints (default: the package's own)")
    parser.add_argument("--recipe", type=Path, metavar="FILE.yaml", help="recipe in place of the checkpoint's own")
    parser.add_argument("--segmenter", type=Path, metavar="FILE", help="evaluator (default: the package's own)")
    parser.add_argument("--only", nargs="*", choices=(*TABLES, *CURVES), default=(*TABLES, *CURVES), metavar="SECTION",
                        help=f"some of {', '.join((*TABLES, *CURVES))} (default: all)")
    parser.add_argument("--again", action="store_true", help="measure these sections anew though they are there")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N label maps for the curves (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="write a sheet of pictures to look at")
    parser.add_argument("--sheet-count", type=int, default=8, metavar="N", help="label maps on it (default 8)")
    parser.add_argument("--dry-run", action="store_true", help="only print how many pictures each section makes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of ablation.json")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of results.md and the curves")
    return parser.parse_args()


def _check_arguments(arguments, wanted):
    for name, least in (("limit", 2), ("sheet_count", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: expected at least {least}")
    if arguments.sheet is not None and arguments.sheet.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise InputError(f"--sheet {arguments.sheet}: expected the name of a picture, such as sheet.jpg")
    if set(wanted) & set(CURVES):
        check_drawing()
    for folder in (arguments.output, arguments.docs, *([arguments.sheet.parent] if arguments.sheet else [])):
        output_folder(folder)


def print_plan(studio, tasks):
    """Prints how many pictures each section makes, and in how many evaluations of the network."""
    for section, some in tasks.items():
        if section == "real":
            print(f"{section}: none, {len(some)} photos")
            continue
        made = {repr(s[1:3]): evaluations(s, studio.generator) for s in settings_of(section, studio.generator)}
        print(f"{section}: {len(made) * len(some)} pictures, {sum(made.values()) * len(some)} guided steps")
    return 0


def measure_all(studio, tasks, arguments):
    """Measures the sections that are not in ablation.json yet, and writes that and the results after each."""
    path = arguments.output / "ablation.json"
    kept = _read(path)
    for section, some in tasks.items():
        about = identity(section, studio, some)
        found = kept["sections"].get(section)
        if found and found["identity"] == about and not arguments.again:
            print(f"{section}: is in {path} already")
        else:
            kept["sections"][section] = {"identity": about, **measure_section(section, studio, some)}
            kept["about"] = {
                "command": _command(), "weights": weights_of(arguments.checkpoint),
                "machine": machine(), "ensemble": len(studio.generator.checkpoints),
            }
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        written = write_results(kept, arguments.docs)
    if tasks:
        print(f"written: {', '.join(map(str, [path, *written]))}")


def _read(path):
    try:
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {"about": {}, "sections": {}}
        kept["sections"].items(), kept["about"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not the figures of this program ({error}); remove it or give another --output") \
            from error
    return kept


def _command():
    """The command line, with the names of files and folders alone."""
    return shlex.join(["python", "benchmarks/ablation.py", *(Path(a).name if "/" in a else a for a in sys.argv[1:])])


if __name__ == "__main__":
    run_tool(main)
