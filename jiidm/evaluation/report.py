"""The report of an `Evaluation`: plain data, rendered as Markdown, as JSON, and as one HTML page by a template."""
import base64
import io
import json
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from jiidm.data.labels import colorize
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.judged import JUDGED
from jiidm.evaluation.measure import MEASURES, SHOWN_WIDTH, Evaluation, shrink_labels
from jiidm.evaluation.metrics import Figure, score_formula
from jiidm.system.files import output_folder, written_whole

# per part: words, column of pictures, colour
PARTS = {
    "results": ("results", "result", "#2f6db3"),
    "compare": ("compared with", "compared with", "#c8641e"),
    "real": ("real photos (ceiling)", "real photo", "#4d8f57"),
}
_MEASURES = {**MEASURES, **JUDGED}
_MORE_IS_BETTER = {**{name: better for name, (_, better) in _MEASURES.items()}, "score": True, "IoU": True}
_EXTREMES = 4  # best and worst pictures by each measure
_BINS, _WIDTH, _HEIGHT = 20, 320, 150  # of a histogram
_QUALITY = 80  # of the JPEGs


def write_report(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Writes report.md, report.json and report.html, one self-contained page.

    Args:
        evaluation: from `evaluate`.
        folder: created where it is missing.

    Returns:
        The three paths.

    Raises:
        InputError: the files cannot be written.
    """
    folder = output_folder(folder)
    report = describe(evaluation)
    texts = {"report.md": render_markdown(report), "report.json": render_json(evaluation),
             "report.html": render_html({**report, **describe_pictures(evaluation)})}
    for name, text in texts.items():
        with written_whole(folder / name) as path:
            path.write_text(text, "utf-8")
    return [folder / name for name in texts]


# ---------------------------------------------------------------------------------------------------------------- data

def describe(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what both Markdown and HTML say: title, tables as lists of texts, sentences, protocol."""
    parts, sets, compared = list(evaluation.sets), evaluation.sets, bool(evaluation.differences)
    head = [*(PARTS[part][0] for part in parts), *(["results - compared (paired)"] if compared else [])]
    figures = [[measure_words(name, evaluation), *(format_figure(sets[part].figures[name]) for part in parts),
                *([_format_difference(name, evaluation.differences[name])] if compared else [])]
               for name in sets["results"].figures]
    iou = [[f"{c} {evaluation.classes.names[c]}", *(format_figure(sets[part].class_iou[c]) for part in parts),
            *([_format_difference("IoU", evaluation.class_differences[c])] if compared else [])]
           for c in _known_classes(evaluation)]
    notes = [f"Mask accuracy of {sets[part].path}, divided by that of the real photos: {format_figure(ratio)}"
             for part, ratio in evaluation.ratios.items()]
    return {
        "title": f"{sets['results'].path}, measured",
        "folders": [f"{PARTS[part][0]}: {sets[part].path}" for part in parts],
        "legend": f"With 95 % intervals. Less is better for the LAB distances, {evaluation.frechet_name} and KID; more "
                  f"for all others.",
        "figures": {"head": ["figure", *head], "rows": figures},
        "score": score_formula(sets["results"].score_terms),
        "notes": [*notes, *_describe_ceiling(evaluation), *([] if evaluation.judge else
                  [f"The judge's figures: {evaluation.protocol['judge']}."])],
        "iou": {"head": ["class", *head], "rows": iou},
        "protocol": evaluation.protocol,
        "problems": evaluation.problems,
    }


def _known_classes(evaluation: Evaluation) -> list[int]:
    """The classes that some label map or prediction has."""
    return [c for c in range(len(evaluation.classes))
            if any(math.isfinite(found.class_iou[c].value) for found in evaluation.sets.values())]


def _describe_ceiling(evaluation: Evaluation) -> list[str]:
    """What to compare the mask accuracy with where there are no real photos of the masks."""
    if "real" in evaluation.sets:
        return []
    known = evaluation.segmenter.known
    if known is None or known.mask_accuracy is None:
        return ["No real photos of these masks were given (--real). How accurate the segmenter is on them is not "
                "known, so the mask accuracy has no ceiling to be compared with."]
    return [f"The real photos of these masks (--real) were not given. On {known.photos} other photos that it was not "
            f"trained on, the segmenter has a mask accuracy of {known.mask_accuracy:.4f} and an mIoU of "
            f"{known.mean_iou:.4f}: the ceiling, if these masks are like theirs."]


def measure_words(name: str, evaluation: Evaluation) -> str:
    """Returns what a figure is called in the report."""
    terms = evaluation.sets["results"].score_terms
    complete = set(terms) == {"aesthetic", "style", "fid"}
    score = "contest score A" if complete else f"contest score over {', '.join(terms)} only"
    return {**{key: words for key, (words, _) in _MEASURES.items()}, "score": score}.get(name, name)


def format_figure(figure: Figure, digits: int = 4) -> str:
    """Returns a figure as text: 0.8123 [0.8001, 0.8245]; "-" where it is not defined."""
    if not math.isfinite(figure.value):
        return "-"
    if figure.low is None:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def _format_difference(name: str, difference: Figure) -> str:
    """A difference as text, with a verdict."""
    if difference.low is None or difference.high is None:
        return format_figure(difference)
    if difference.low <= 0 <= difference.high:
        return f"{format_figure(difference)}, within the interval"
    better = (difference.value > 0) == _MORE_IS_BETTER.get(name, False)
    return f"{format_figure(difference)}, {'better' if better else 'worse'}"


def describe_pictures(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what only the HTML page shows: histograms, the best and worst pictures, the numbers of every picture."""
    measures = {name: about for name, about in _MEASURES.items() if name in evaluation.sets["results"].per_picture}
    columns = [(f"{words}, {PARTS[part][1]}", found.per_picture[name]) for part, found in evaluation.sets.items()
               for name, (words, _) in measures.items()]
    return {
        "parts": [{"name": PARTS[part][1], "color": PARTS[part][2]} for part in evaluation.sets],
        "histograms": [bin_values(words, {part: found.per_picture[name] for part, found in evaluation.sets.items()})
                       for name, (words, _) in measures.items()],
        "classes": [{"name": evaluation.classes.names[c],
                     "color": f"rgb{tuple(int(v) for v in evaluation.classes.palette[c])}"}
                    for c in _known_classes(evaluation)],
        "extremes": _rank_pictures(evaluation, measures),
        "all": {"head": ["picture", *(words for words, _ in columns)],
                "rows": [[stem, *(f"{values[i]:.3f}" for _, values in columns)]
                         for i, stem in enumerate(evaluation.stems)]},
    }


def bin_values(title: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns a histogram as the bars of a chart.

    Args:
        title: the measure.
        values: numbers of each picture, by part; those that are not finite are left out.
    """
    values = {part: each[np.isfinite(each)] for part, each in values.items()}
    every = np.concatenate(list(values.values()))
    low, high = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    high = high if high > low else low + 1e-3
    counts = {part: np.histogram(each, _BINS, (low, high))[0] for part, each in values.items()}
    most = max(1, max(int(each.max()) for each in counts.values()))
    top, bottom, step = 20, _HEIGHT - 18, _WIDTH / _BINS
    bar = (step - 1) / len(counts)
    bars = [{"x": i * step + place * bar, "y": bottom - (bottom - top) * count / most, "width": bar,
             "height": (bottom - top) * count / most, "color": PARTS[part][2]}
            for place, (part, each) in enumerate(counts.items()) for i, count in enumerate(each) if count]
    return {"title": title, "most": most, "low": f"{low:.3g}", "high": f"{high:.3g}", "bars": bars,
            "width": _WIDTH, "height": _HEIGHT, "bottom": bottom}


def _rank_pictures(evaluation: Evaluation, measures: dict) -> list[dict[str, Any]]:
    """The best and the worst results by each measure; a picture that was shown before refers to that place."""
    found, seen = [], set()
    for name, (words, more_is_better) in measures.items():
        values = evaluation.sets["results"].per_picture[name]
        order = [i for i in np.argsort(-values if more_is_better else values, kind="stable") if np.isfinite(values[i])]
        some = min(_EXTREMES, len(order) // 2)
        for title, which in (("best", order[:some]), ("worst", order[::-1][:some])):
            rows = []
            for i in which:
                numbers = ", ".join(f"{each} {evaluation.sets['results'].per_picture[key][i]:.3f}"
                                    for key, (each, _) in measures.items())
                rows.append({"anchor": f"pictures-{i}", "stem": evaluation.stems[i], "numbers": numbers,
                             "pictures": [] if i in seen else _show_pictures(evaluation, i)})
                seen.add(i)
            found.append({"title": f"{title} by {words}", "rows": rows})
    return found


def _show_pictures(evaluation: Evaluation, index: int) -> list[dict[str, str]]:
    """Label map, reference, pictures of all parts and prediction of one task, as captions with data URLs."""
    task = evaluation.tasks[index]
    labels = shrink_labels(evaluation.reader.read(task.labels))

    def show(path):
        return encode_picture(fit_photo(read_photo(path), SHOWN_WIDTH, labels.shape[0]), "jpeg")

    cells = {"label map": encode_picture(colorize(labels, evaluation.classes), "png"),
             "reference": show(task.reference),
             **{PARTS[part][1]: show(found.files[task.stem]) for part, found in evaluation.pictures.items()},
             "what the segmenter sees in the result":
                 encode_picture(colorize(evaluation.predictions[index], evaluation.classes), "png")}
    return [{"caption": caption, "url": url} for caption, url in cells.items()]


def encode_picture(picture: np.ndarray, kind: str) -> str:
    """Returns a picture (H x W x 3 uint8) as a data URL: flat colours as "png", photos as "jpeg"."""
    buffer, image = io.BytesIO(), Image.fromarray(picture)
    if kind == "jpeg":
        image.save(buffer, "JPEG", quality=_QUALITY)
    else:
        image.quantize(256).save(buffer, "PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ----------------------------------------------------------------------------------------------------------- rendering

def render_html(report: dict[str, Any]) -> str:
    """Returns the page of the data of `describe` and `describe_pictures`."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html.jinja").render(report)


def render_markdown(report: dict[str, Any]) -> str:
    """Returns the Markdown of the data of `describe`."""
    def table(found):
        rows = [found["head"], ["---", *["---:"] * (len(found["head"]) - 1)], *found["rows"]]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def bullets(texts):
        return "\n".join(f"- {text}" for text in texts)

    blocks = [f"# {report['title']}", bullets(report["folders"]), "## Figures", report["legend"],
              table(report["figures"]), f"Score: `{report['score']}`", *report["notes"],
              "## IoU of each class", table(report["iou"]),
              "## Protocol", bullets(f"{name}: {text}" for name, text in report["protocol"].items())]
    if report["problems"]:
        blocks += [f"## Left out ({len(report['problems'])})", bullets(report["problems"])]
    return "\n\n".join(blocks) + "\n"


def render_json(evaluation: Evaluation) -> str:
    """Returns the figures and the numbers of every picture as JSON; null stands for what is not defined."""
    def figures(found):
        return {name: dict(zip(figure._fields, finite(figure), strict=True)) for name, figure in found.items()}

    def finite(values):
        return [float(v) if v is not None and math.isfinite(v) else None for v in values]

    names = evaluation.classes.names
    sets = {part: {
        "path": str(found.path),
        "figures": figures(found.figures),
        "class_iou": figures(dict(zip(names, found.class_iou, strict=True))),
        "per_picture": {name: dict(zip(evaluation.stems, finite(values), strict=True))
                        for name, values in found.per_picture.items()},
    } for part, found in evaluation.sets.items()}
    terms = evaluation.sets["results"].score_terms
    return json.dumps({
        "protocol": evaluation.protocol, "score": {"terms": terms, "formula": score_formula(terms)}, "sets": sets,
        "differences": figures(evaluation.differences),
        "class_iou_differences": figures(dict(zip(names, evaluation.class_differences, strict=False))),
        "ratio_to_real_mask_accuracy": figures(evaluation.ratios),
        "left_out": evaluation.problems,
    }, indent=1, allow_nan=False) + "\n"
