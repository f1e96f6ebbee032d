"""The report as one HTML page that needs no other file: figures, histograms as SVG, pictures as JPEG within."""
import base64
import html
import io
import re

import numpy as np
from PIL import Image

from jiidm.data.labels import CLASSES, PALETTE, colorize, read_label_map, resize_labels
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.measure import MEASURES, predict

_WIDTH, _QUALITY = 224, 80  # of the pictures
_EXTREMES = 4  # best and worst pictures of each measure
_BINS = 20
_COLORS = {"results": "#2f6db3", "compare": "#c8641e", "real": "#4d8f57"}
_COLUMNS = {"results": "result", "compare": "compared with", "real": "real photo"}
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1500px;padding:0 1.5rem;color:#1d2530}
table{border-collapse:collapse;margin:.8rem 0}
td,th{border-bottom:1px solid #d5dae1;padding:.25rem .8rem;text-align:right}
td:first-child,th:first-child{text-align:left}h2{margin-top:2.4rem}h3{margin:1.6rem 0 .3rem}
.row{display:flex;gap:.5rem;margin:.3rem 0 .1rem;overflow-x:auto}figure{margin:0}
figcaption{font-size:12px;color:#5b6675}
.row img{display:block;width:224px;height:auto}.note{font-size:13px;color:#3b4654;margin-bottom:.9rem}
.swatch{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .9em;vertical-align:-.05em}
code{background:#f0f2f5;padding:.1em .3em}svg{margin-right:1.5rem}.all{font-size:12px}li{overflow-wrap:anywhere}
"""


def page_of(evaluation, markdown):
    """The page, as text: what the Markdown of the report says, and the pictures."""
    title = html.escape(f"{evaluation.sets['results'].path}, measured")
    figures, rest = markdown.split("## IoU of each class", 1)
    body = [_html_of(figures), "<h2>Histograms</h2>", *_histograms(evaluation), "<h2>Best and worst</h2>",
            _legend(evaluation), *_extremes(evaluation), _html_of("## IoU of each class" + rest), _all(evaluation)]
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n")


def _html_of(markdown):
    """The few forms of Markdown that the report has, as HTML."""
    found, rows, items = [], [], []

    def flush():
        if rows:
            head, *others = rows
            found.append("<table>" + _row(head, "th") + "".join(_row(row, "td") for row in others) + "</table>")
        if items:
            found.append("<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>")
        rows.clear()
        items.clear()

    for line in markdown.splitlines():
        text = re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(line))
        if line.startswith("|"):
            if not line.startswith("| ---"):
                rows.append([cell.strip() for cell in text.strip("|").split("|")])
        elif line.startswith("- "):
            items.append(text[2:])
        else:
            flush()
            level = len(line) - len(line.lstrip("#"))
            if level:
                found.append(f"<h{level}>{text[level:].strip()}</h{level}>")
            elif line:
                found.append(f"<p>{text}</p>")
    flush()
    return "\n".join(found)


def _row(cells, kind):
    return "<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells) + "</tr>"


# ---------------------------------------------------------------------------------------------------------- histograms

def _histograms(evaluation):
    key = " ".join(f'<span class="swatch" style="background:{_COLORS[part]}"></span>{_COLUMNS[part]}'
                   for part in evaluation.sets)
    yield f"<p>{key}</p>"
    for name, (words, _) in _measures(evaluation).items():
        yield histogram_svg(words, {part: found.per_picture[name] for part, found in evaluation.sets.items()})


def histogram_svg(title, values, width=320, height=150):
    """An SVG of the histograms of the arrays in `values`, by part of the evaluation; numbers that are no numbers are
    left out."""
    values = {part: each[np.isfinite(each)] for part, each in values.items()}
    joined = np.concatenate(list(values.values()))
    low, high = (float(joined.min()), float(joined.max())) if len(joined) else (0.0, 1.0)
    high = high if high > low else low + 1e-3
    counts = {part: np.histogram(each, _BINS, (low, high))[0] for part, each in values.items()}
    most = max(1, max(int(each.max()) for each in counts.values()))
    top, bottom, step = 20, height - 18, width / _BINS
    shapes = []
    for place, (part, each) in enumerate(counts.items()):
        bar = (step - 1) / len(counts)
        for i, count in enumerate(each):
            if count:
                tall = (bottom - top) * count / most
                shapes.append(f'<rect x="{i * step + place * bar:.1f}" y="{bottom - tall:.1f}" width="{bar:.1f}" '
                              f'height="{tall:.1f}" fill="{_COLORS[part]}"/>')
    text = '<text x="{}" y="{}" font-size="12" text-anchor="{}">{}</text>'
    shapes += [text.format(0, 12, "start", html.escape(f"{title}; at most {most} pictures a bar")),
               text.format(0, height - 4, "start", f"{low:.3g}"), text.format(width, height - 4, "end", f"{high:.3g}"),
               f'<line x1="0" x2="{width}" y1="{bottom}" y2="{bottom}" stroke="#8a94a2"/>']
    return f'<svg width="{width}" height="{height}" role="img">{"".join(shapes)}</svg>'


# ------------------------------------------------------------------------------------------------------------ pictures

def _extremes(evaluation):
    """Rows of pictures: the best and the worst results by each measure."""
    rows = {}
    for name, (words, more_is_better) in _measures(evaluation).items():
        values = evaluation.sets["results"].per_picture[name]
        order = [i for i in np.argsort(-values if more_is_better else values, kind="stable") if np.isfinite(values[i])]
        some = min(_EXTREMES, len(order) // 2)
        for title, which in (("best", order[:some]), ("worst", order[::-1][:some])):
            yield f"<h3>{title} by {words}</h3>"
            for i in which:
                if i not in rows:
                    rows[i] = f"pictures-{i}"
                    yield _pictures(evaluation, i, rows[i])
                else:
                    yield (f'<p class="note"><a href="#{rows[i]}">{html.escape(evaluation.stems[i])}</a>, shown above: '
                           f"{_numbers(evaluation, i)}</p>")


def _pictures(evaluation, index, anchor):
    task = evaluation.tasks[index]
    labels = read_label_map(task.labels, len(CLASSES), allow_no_class=True)
    height = max(1, round(_WIDTH * labels.shape[0] / labels.shape[1]))
    result = read_photo(evaluation.pictures["results"].files[task.stem])
    seen, = predict(evaluation.segmenter, [result], [labels.shape])
    cells = [("label map", colorize(resize_labels(labels, _WIDTH, height)), "image/png"),
             ("reference", fit_photo(read_photo(task.reference), _WIDTH, height), "image/jpeg")]
    for part, found in evaluation.pictures.items():
        photo = read_photo(found.files[task.stem])
        cells.append((_COLUMNS[part], fit_photo(photo, _WIDTH, height), "image/jpeg"))
    cells.append(("what the segmenter sees in the result", colorize(resize_labels(seen, _WIDTH, height)), "image/png"))
    figures = "".join(f'<figure><img alt="{words}" src="{inline(picture, kind)}"><figcaption>{words}</figcaption>'
                      f"</figure>" for words, picture, kind in cells)
    return (f'<div class="row" id="{anchor}">{figures}</div><p class="note">{html.escape(task.stem)}: '
            f"{_numbers(evaluation, index)}</p>")


def _numbers(evaluation, index):
    values = evaluation.sets["results"].per_picture
    return ", ".join(f"{words} {values[name][index]:.3f}" for name, (words, _) in _measures(evaluation).items())


def _measures(evaluation):
    """Those of `MEASURES` that the pictures have."""
    return {name: about for name, about in MEASURES.items() if name in evaluation.sets["results"].per_picture}


def inline(picture, kind):
    """A picture (H x W x 3 uint8) as a data URL; flat colours as PNG, photos as JPEG."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if kind == "image/jpeg":
        image.save(buffer, "JPEG", quality=_QUALITY)
    else:
        image.quantize(64).save(buffer, "PNG", optimize=True)
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _legend(evaluation):
    iou = evaluation.sets["results"].class_iou
    names = (f'<span class="swatch" style="background:rgb{tuple(int(v) for v in PALETTE[c])}"></span>{CLASSES[c]}'
             for c in range(len(CLASSES)) if np.isfinite(iou[c].value))
    return f"<p>{''.join(names)}</p>"


def _all(evaluation):
    """A table of the numbers of every picture."""
    heads, columns = ["picture"], []
    for part, found in evaluation.sets.items():
        for name, (words, _) in _measures(evaluation).items():
            heads.append(f"{words}, {_COLUMNS[part]}")
            columns.append(found.per_picture[name])
    rows = [_row([html.escape(stem), *(f"{column[i]:.3f}" for column in columns)], "td")
            for i, stem in enumerate(evaluation.stems)]
    return (f'<details><summary>All {len(rows)} pictures</summary><table class="all">{_row(heads, "th")}'
            f"{''.join(rows)}</table></details>")
