"""The report of an `Evaluation`: Markdown and JSON here, the page with the pictures in `jiidm.evaluation.page`."""
import json
import math

from jiidm.data.labels import CLASSES
from jiidm.evaluation.measure import MEASURES
from jiidm.evaluation.metrics import score_formula
from jiidm.evaluation.page import page_of
from jiidm.system.files import output_folder, written_whole

PART_NAMES = {"results": "results", "compare": "compared with", "real": "real photos (ceiling)"}
_MORE_IS_BETTER = {**{name: better for name, (_, better) in MEASURES.items()}, "score": True, "IoU": True}


def write_report(evaluation, folder):
    """Writes report.md, report.json and report.html, one self-contained page, to `folder`; returns their paths.

    Raises InputError where they cannot be written.
    """
    folder = output_folder(folder)
    texts = {"report.md": markdown_of(evaluation), "report.json": json_of(evaluation), "report.html": None}
    texts["report.html"] = page_of(evaluation, texts["report.md"])
    for name, text in texts.items():
        with written_whole(folder / name) as path:
            path.write_text(text, "utf-8")
    return [folder / name for name in texts]


def words_of(name, evaluation):
    """What a figure is called in the report."""
    terms = evaluation.sets["results"].score_terms
    complete = set(terms) == {"aesthetic", "style", "fid"}
    score = "contest score A" if complete else f"contest score over {', '.join(terms)} only"
    return {**{key: words for key, (words, _) in MEASURES.items()}, "score": score}.get(name, name)


def shown(figure, digits=4):
    """A `Figure` as text: 0.8123 (0.8001 to 0.8245); "-" where it is not defined."""
    if not math.isfinite(figure.value):
        return "-"
    if figure.low is None:
        return f"{figure.value:.{digits}f}"
    return f"{figure.value:.{digits}f} ({figure.low:.{digits}f} to {figure.high:.{digits}f})"


def markdown_of(evaluation):
    """The report as Markdown."""
    parts = list(evaluation.sets)
    terms = evaluation.sets["results"].score_terms
    lines = [f"# {evaluation.sets['results'].path}, measured", "",
             *(f"- {PART_NAMES[part]}: {evaluation.sets[part].path}" for part in parts), "", "## Figures", "",
             "With 95 % intervals. Less is better for the LAB distances and "
             f"{evaluation.frechet_name}; more for all others.", ""]
    head = ["figure", *(PART_NAMES[part] for part in parts)]
    if evaluation.differences:
        head.append("results - compared (paired)")
    rows = []
    for name in evaluation.sets["results"].figures:
        row = [words_of(name, evaluation), *(shown(evaluation.sets[part].figures[name]) for part in parts)]
        if evaluation.differences:
            row.append(_difference(name, evaluation.differences[name]))
        rows.append(row)
    lines += _table(head, rows)
    lines += ["", f"Score: `{score_formula(terms)}`"]
    for part, share in evaluation.shares.items():
        lines += ["", f"Mask accuracy of {evaluation.sets[part].path} as a share of that on the real photos: "
                      f"{shown(share)}"]
    lines += _ceiling(evaluation)
    lines += ["", "## IoU of each class", ""]
    iou = {part: evaluation.sets[part].class_iou for part in parts}
    known = [c for c in range(len(CLASSES)) if any(math.isfinite(iou[part][c].value) for part in parts)]
    lines += _table(["class", *head[1:]], [
        [f"{c} {CLASSES[c]}", *(shown(iou[part][c]) for part in parts),
         *(_difference("IoU", each[c]) for each in [evaluation.class_differences] if each)] for c in known])
    lines += ["", "## Protocol", "", *(f"- {name}: {text}" for name, text in evaluation.protocol.items())]
    if evaluation.problems:
        lines += ["", f"## Left out ({len(evaluation.problems)})", "", *(f"- {text}" for text in evaluation.problems)]
    return "\n".join(lines) + "\n"


def _ceiling(evaluation):
    """What the mask accuracy is to be held against, where there are no real photos of the masks."""
    if "real" in evaluation.sets:
        return []
    known = evaluation.segmenter.known
    if known is None or known.mask_accuracy is None:
        return ["", "No real photos of these masks were given (--real): how accurate the segmenter itself is on them "
                    "is not known, and the mask accuracy has no ceiling to be held against."]
    return ["", f"The real photos of these masks (--real) were not given; on {known.photos} others that it was not "
                f"trained on the segmenter has a mask accuracy of {known.mask_accuracy:.4f} and an mIoU of "
                f"{known.mean_iou:.4f}: the ceiling, if these masks are like theirs."]


def _difference(name, difference):
    if difference.low is None:
        return shown(difference)
    if difference.low <= 0 <= difference.high:
        return f"{shown(difference)}, within the interval"
    better = (difference.value > 0) == _MORE_IS_BETTER.get(name, False)
    return f"{shown(difference)}, {'better' if better else 'worse'}"


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def json_of(evaluation):
    """The report as JSON, with the numbers of every picture; null stands for what is not defined."""
    def figures(found):
        return {name: dict(zip(figure._fields, finite(figure), strict=True)) for name, figure in found.items()}

    def finite(values):
        return [float(v) if v is not None and math.isfinite(v) else None for v in values]

    sets = {part: {
        "path": str(found.path),
        "figures": figures(found.figures),
        "class_iou": figures(dict(zip(CLASSES, found.class_iou, strict=True))),
        "per_picture": {name: dict(zip(evaluation.stems, finite(values), strict=True))
                        for name, values in found.per_picture.items()},
    } for part, found in evaluation.sets.items()}
    terms = evaluation.sets["results"].score_terms
    return json.dumps({
        "protocol": evaluation.protocol, "score": {"terms": terms, "formula": score_formula(terms)}, "sets": sets,
        "differences": figures(evaluation.differences),
        "class_iou_differences": figures(dict(zip(CLASSES, evaluation.class_differences, strict=False))),
        "share_of_real_mask_accuracy": figures(evaluation.shares),
        "left_out": evaluation.problems,
    }, indent=1, allow_nan=False) + "\n"
