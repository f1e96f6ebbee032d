"""What the tables of pictures share: measured folders, rows with differences, and the file of all figures."""
import json
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

from PIL import Image

from benchmarks.ablation_report import AXES, check_drawing, markdown_of, write_results
from benchmarks.measuring import machine
from jiidm.checkpoint import source_of
from jiidm.config import to_dict
from jiidm.data.labels import colorize, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo, resize_photo, sheet_of
from jiidm.evaluation.measure import FRECHET_RESAMPLES, Protocol, evaluate, subtract
from jiidm.evaluation.pairing import find_pictures, find_tasks
from jiidm.evaluation.weights import load_segmenter
from jiidm.generator import DEFAULT_WEIGHTS
from jiidm.inference.color_transfer import transfer_color
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole


def add_arguments(parser):
    """Adds the arguments of a `Gallery` and of its results to an `ArgumentParser`."""
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR", help="test folder with label_to_img.json")
    parser.add_argument("--references", required=True, type=Path, metavar="DIR",
                        help="folder of the style photos, or one that has imgs/")
    parser.add_argument("--real", type=Path, metavar="DIR",
                        help="real photos of the same label maps: the ceiling")
    parser.add_argument("--segmenter", type=Path, metavar="FILE", help="evaluator (default: the package's own)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default 0)")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default 1000)")
    parser.add_argument("--note", help="a sentence for the text above the table")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of ablation.json")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of measurements.md and the curves")


class Gallery:
    """Measures folders of pictures of one test folder.

    Args:
        arguments: of the command line, see `add_arguments`.
        folder: a temporary folder.

    Attributes:
        tasks: the label maps with their references.
        photos: the files of all reference photos.
        real: the `Pictures` of the real photos, or None.
        protocol_text: the protocol of the last measurement, in words by topic.
    """

    def __init__(self, arguments, folder):
        self.given, self.folder, self.real, self.protocol_text = arguments, folder, None, {}
        self.segmenter = load_segmenter(arguments.segmenter).sha256  # refused before any picture is made
        self.tasks, self.photos, problems = find_tasks(arguments.labels, arguments.references)
        _check(problems)
        self.protocol = Protocol(resamples=arguments.resamples,
                                 frechet_resamples=min(arguments.resamples, FRECHET_RESAMPLES))
        if arguments.real is not None:
            photos = arguments.real / "imgs" if (arguments.real / "imgs").is_dir() else arguments.real
            self.real, problems = find_pictures(photos, self.tasks, one_size=False, extra_allowed=True)
            _check(problems)

    def measure(self, folder, tasks):
        """Measures a folder of pictures; returns the `Measured`."""
        found = evaluate(folder, self.given.labels, self.given.references, segmenter=self.given.segmenter, judge=False,
                         statistics=self.folder / "statistics", allow_missing=len(tasks) < len(self.tasks),
                         protocol=self.protocol)
        self.protocol_text = {name: str(text).replace(str(self.given.references), self.given.references.name)
                     for name, text in found.protocol.items()}
        return found.sets["results"]

    def transfer(self, tasks, files, size, method="", share=1.0, name="transferred"):
        """Writes pictures after a colour transfer to their references; returns their folder, `name`, made anew.

        Args:
            tasks: whose pictures.
            files: {stem: path} of the pictures.
            size: width and height of the result.
            method, share: of the transfer; "" is none.
        """
        folder = make_empty(self.folder / name)
        for task in tasks:
            picture = resize_photo(read_photo(files[task.stem]), *size)
            picture = transfer_color(picture, read_style(task, size), method, share) if method else picture
            Image.fromarray(picture).save(folder / f"{task.stem}.png")
        return folder


def read_style(task, size):
    """Reads the reference of a task, fitted to `size` (width, height): H x W x 3 uint8."""
    return fit_photo(read_photo(task.reference), *size)


def write_sheet(path, tasks, size, made):
    """Writes a sheet: styles and label maps of tasks, then rows {title: pictures}, all in `size` (width, height)."""
    rows = {"style": [read_style(task, size) for task in tasks],
            "label map": [colorize(resize_labels(read_label_map(task.labels), *size)) for task in tasks], **made}
    with written_whole(path) as temporary:
        Image.fromarray(sheet_of(list(rows.values()), list(rows))).save(temporary, quality=92)


def make_empty(folder):
    """Deletes a folder and makes it anew; returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _check(problems):
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(f"{'; '.join(problems[:3])}{more}; mend the folders first, every label map is measured")


def make_row(name, measured, base, seconds=None, **more):
    """A row for the JSON: figures, and differences to the `Measured` `base` (or None), each as [value, low, high].

    Both are over the same resamples of the same pictures: the differences are paired.
    """
    apart = {key: list(each) for key, each in subtract(measured, base).items()} if base is not None else {}
    figures = {key: list(figure) for key, figure in measured.figures.items()}
    return {"name": name, "figures": figures, "differences": apart, "seconds": seconds, **more}


def hash_weights(checkpoint):
    """{file: sha256} of a checkpoint, or of a folder of them."""
    path = DEFAULT_WEIGHTS if checkpoint == "default" else Path(checkpoint)
    sources = [source_of(file) for file in (sorted(path.glob("*.safetensors")) if path.is_dir() else [path])]
    return {source.file: source.sha256 for source in sources}


def describe_origin(checkpoints):
    """Command, machine and SHA-256 of the weights for a section; `checkpoints` is {name: checkpoint or folder}."""
    weights = {f"{name}: {file}" if name else file: digest for name, path in checkpoints.items()
               for file, digest in hash_weights(path).items()}
    return {"command": _command(), "machine": machine(), "weights": weights}


def read_figures(arguments):
    """Reads ablation.json in the folder --output.

    Raises InputError where it is another file, and where --output or --docs cannot be written.
    """
    path = output_folder(arguments.output) / "ablation.json"
    output_folder(arguments.docs)
    try:
        kept = json.loads(path.read_text("utf-8")) if path.exists() else {"sections": {}}
        markdown_of(kept)
        curves = [section for section in AXES if section in kept["sections"]]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not figures of this program ({error}); remove it or give another --output") \
            from error
    if curves:
        check_drawing()  # every section draws them anew
    return kept


def keep_section(arguments, section, found=None):
    """Puts a section into ablation.json (None: it stays as it is) and writes all results anew; returns the files."""
    kept, path = read_figures(arguments), arguments.output / "ablation.json"
    if found is not None:
        kept["sections"][section] = {**found, "note": arguments.note} if arguments.note else found
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return [path, *write_results(kept, arguments.docs)]


def keep_rows(arguments, section, rows):
    """Writes a section of rows that are compared with the first.

    Args:
        arguments: the command line.
        section: its name.
        rows: an iterable of (words, file or folder of weights, `Gallery`, `Measured`, seconds an image or None).
    """
    warnings.filterwarnings("ignore", message=".*Frechet")  # said once in measurements.md
    found, base, named = [], None, {}
    for words, path, gallery, measured, seconds in rows:
        found.append(make_row(words, measured, base, seconds))
        base, named[words] = base or measured, path
        about = {"identity": {"recipe": to_dict(gallery.recipe)} if hasattr(gallery, "recipe") else {},
                 "terms": list(measured.score_terms), "pictures": len(gallery.tasks), "protocol": gallery.protocol_text}
    written = keep_section(arguments, section, {**about, "rows": found, **describe_origin(named)})
    print(f"written: {', '.join(map(str, written))}")


def _command():
    """The command line; absolute paths are cut to their names."""
    given = (re.sub(r"(^|=)/.*?([^/]+)/?$", r"\1\2", argument) for argument in sys.argv[1:])
    return shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *given])
