"""The directive `class-table`: the 29 classes with their numbers and colours, from the code that uses them."""
import json

from docutils import nodes
from docutils.parsers.rst import Directive


class ClassTable(Directive):
    """One row a class; a mark on those that the default weights have seen."""

    def run(self):
        from jiidm.data.labels import CLASSES, PALETTE
        from jiidm.evaluation.weights import DEFAULT_SEGMENTER

        seen = json.loads(DEFAULT_SEGMENTER.with_suffix(".json").read_text("utf-8"))["classes"]
        rows = []
        for number, (name, color) in enumerate(zip(CLASSES, PALETTE.tolist(), strict=True)):
            red, green, blue = color
            rows.append(
                f'<tr><td>{number}</td><td>{name}</td>'
                f'<td><span class="swatch" style="background: rgb({red}, {green}, {blue})"></span></td>'
                f"<td><code>{red}, {green}, {blue}</code></td><td><code>#{red:02x}{green:02x}{blue:02x}</code></td>"
                f'<td>{"yes" if number in seen else ""}</td></tr>'
            )
        titles = "value", "class", "colour", "R, G, B", "hex", "default weights"
        head = "".join(f"<th>{title}</th>" for title in titles)
        table = f'<table class="docutils classes"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        return [nodes.raw("", f'<div class="table-wrapper">{table}</div>', format="html")]


def setup(app):
    app.add_directive("class-table", ClassTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
