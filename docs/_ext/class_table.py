"""The directive `class-table NAME`: a shipped table of classes with its numbers and colours, from the file itself."""
from docutils import nodes
from docutils.parsers.rst import Directive


class ClassTable(Directive):
    """One row a class: of the contest's table a mark on those that the default weights have seen, of others what the
    class becomes; folded up where the table is another one."""

    required_arguments = 1

    def run(self):
        from jiidm.data.classes import load_table

        table = load_table(self.arguments[0])
        is_contest = table.target is None
        seen = _seen_by_default() if is_contest else ()
        rows = [[str(c.number), c.name, *_color(c.color), ("yes" if c.name in seen else "") if is_contest else
                 c.becomes or "no class"] for c in table.classes]
        titles = "value", "class", "colour", "R, G, B", "hex", "default weights" if is_contest else "becomes"
        if not any(c.color for c in table.classes):
            rows, titles = [row[:2] + row[5:] for row in rows], titles[:2] + titles[5:]
        body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
        head = "".join(f"<th>{title}</th>" for title in titles)
        html = (f'<div class="table-wrapper"><table class="docutils classes"><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div>")
        if not is_contest:
            html = f"<details><summary><code>{table.name}</code>: {table.title}</summary>{html}</details>"
        return [nodes.raw("", html, format="html")]


def _color(color):
    """A swatch, R, G, B and hex of a colour, as HTML; three empty cells of None."""
    if color is None:
        return "", "", ""
    red, green, blue = color
    return (f'<span class="swatch" style="background: rgb({red}, {green}, {blue})"></span>',
            f"<code>{red}, {green}, {blue}</code>", f"<code>#{red:02x}{green:02x}{blue:02x}</code>")


def _seen_by_default():
    """The names of the classes that the default weights have seen."""
    from jiidm.checkpoint import open_checkpoint
    from jiidm.data.vocabulary import vocabulary_of
    from jiidm.generator import DEFAULT_WEIGHTS

    path = max(DEFAULT_WEIGHTS.glob("unet*.safetensors"))
    unet = open_checkpoint(path, "unet")
    return vocabulary_of(unet.classes, unet.config.unet.num_classes, path).seen_names


def setup(app):
    app.add_directive("class-table", ClassTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
