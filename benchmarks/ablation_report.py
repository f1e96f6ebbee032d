"""The results as Markdown, and the ablation's curves as PNG, from the figures in ablation.json alone."""
from jiidm.evaluation.judged import JUDGED
from jiidm.evaluation.measure import MEASURES
from jiidm.evaluation.metrics import Figure, score_formula
from jiidm.evaluation.report import format_figure
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole

_TITLES = {
    "comparison": "GauGAN, CLADE and IIDM",
    "real": "Real photos of the same label maps", "modules": "The modules", "options": "Further options of the recipe",
    "training": "Options of the training", "longer": "Options of the training, longer",
    "autoencoder": "The autoencoder",
    "guidance": "Guidance", "start": "Start strength", "steps": "Steps",
}
_TEXTS = {
    "comparison": "The paper's comparison. A training's time is the number of its steps times the time of one step, "
                  "measured here in one run; reading ahead, saving and drawing are not included. That of the default "
                  "weights is half of the minutes of one core in their card. *Full* is the whole "
                  "recipe of the weights with its final colour transfer. GauGAN and CLADE also have a row with that "
                  "transfer. GauGAN and CLADE have no perceptual loss unless their configurations name VGG weights, "
                  "which are not included; the decoder of the default weights has one, by EfficientNet-Lite0. CLADE "
                  "has intra-class positional encoding, as in configs/clade.yaml. The Frechet distance is to the style "
                  "photos; where the real photos are among them, theirs is low for that reason. A mask accuracy above "
                  "that of real photos does not mean better: the judge finds a class more easily where it looks "
                  "typical.",
    "real": "The ceiling of the mask accuracy. Further rows: the same photos after a colour transfer to the style "
            "reference. They show how close a transfer comes in style and what it costs in mask accuracy.",
    "modules": "*One round* is image-to-image from the style photo. Further rounds (the paper's refinement) start from "
               "the result before, with or without a colour transfer between. A transfer at the end is not in the "
               "paper. The colour transfer alone is the row with one round and a transfer at the end.",
    "options": "One round each, without the paper's modules.",
    "training": "UNets with one option each, trained for the same time on the same batches; those of one width start "
                "from the same random weights. One round of each is measured. The options are keys of the "
                "configuration: `prediction` (Salimans & Ho 2022), `zero_terminal_snr` (Lin et al. 2023), "
                "`loss_weight` (Hang et al. 2023), `mask_drop` and `ema`. Short trainings favour epsilon: the loss of "
                "v weighs all timesteps evenly, so after a few hundred steps the network knows little about the last, "
                "small noise, and the noise stays in the pictures.",
    "longer": "The same options in longer trainings.",
    "autoencoder": "Held-out photos, encoded and decoded through the codebook: PSNR, SSIM, and what the evaluator "
                   "still finds of the label map. All but the default weights are trained for the same time. The "
                   "codebook is in use from six sevenths of a training on.",
    "guidance": "One round with the first round's settings and other guidance scales.",
    "start": "One round with the first round's settings and other start indices, as a share of the chain. At 0 the "
             "style photo stays as it is, at 1 nothing of it is left. With DDIM a higher start takes more steps.",
    "steps": "One round from the first round's start, with more or fewer evaluations of the network.",
}
_NOT_SHOWN = (
    "This does not show how the models compare at the papers' size. There were {photos} training photos. The networks "
    "have about {millions:.0f} million parameters; the papers' have a hundred (GauGAN, CLADE) or five hundred (IIDM). "
    "The trainings took {minutes} minutes; the papers' took days on GPUs. GauGAN and CLADE encode the reference as one "
    "vector, learned from photos that were their own reference; IIDM starts from the reference's latents and keeps "
    "much of the palette. The evaluator is small: pictures plainer than photos are easier for it; the judge is the one "
    "to go by. A recipe chosen on these label maps has an advantage; GauGAN and CLADE have no recipe."
)
AXES = {"guidance": "guidance scale", "start": "start, share of the chain", "steps": "steps"}
_COMPARED = ("score", "psnr", "mask_accuracy", "style", "judge_of_real", "KID")
_WORDS = {**MEASURES, **JUDGED,
          "judge_of_real": ("mask accuracy by the judge, near classes as one, of the real photos'", True)}
_QUALITY = {"psnr": "PSNR, dB", "ssim": "SSIM"}  # of reconstructions, beside MEASURES


def write_results(kept, folder):
    """Writes measurements.md and a PNG for each measured curve into `folder`; returns their paths.

    `kept` is the content of ablation.json. Raises InputError where a file cannot be written or matplotlib is missing.
    """
    folder, written = output_folder(folder), []
    for section, name in AXES.items():
        if section in kept["sections"]:
            written.append(folder / f"results-{section}.png")
            figure = _curves(kept["sections"][section], name)
            with written_whole(written[-1]) as path:
                figure.savefig(path, dpi=100)
    with written_whole(folder / "measurements.md") as path:
        path.write_text(markdown_of(kept), "utf-8")
    return [folder / "measurements.md", *written]


def check_drawing():
    """Returns matplotlib's `Figure`; raises InputError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure as Drawing
    except ImportError as error:
        raise InputError("the curves need matplotlib; pip install matplotlib, or leave them out with --only") from error
    return Drawing


# ------------------------------------------------------------------------------------------------------------- Markdown

def markdown_of(kept):
    """The results as Markdown."""
    sections = {name: kept["sections"][name] for name in _TITLES if name in kept["sections"]}
    lines = ["# The pictures, measured", "",
             "Means over the label maps with 95 % bootstrap intervals. mIoU and the Frechet distance are of all "
             "pictures together; the score is computed from the means. Differences are paired, picture by picture. "
             "Less is better for the LAB distances, the Frechet distance and KID, whose interval is from random "
             "halves; more is better for all others. With so few "
             "pictures a Frechet distance is biased upwards: compare it only within one table."]
    for section, found in sections.items():
        text = " ".join(filter(None, (_TEXTS[section], found.get("note"))))
        lines += ["", f"## {_TITLES[section]}", "", text, "", *_section(section, found), "",
                  f"Made by `{found['command']}` on {found['machine']['processor']}, {found['machine']['cores']} "
                  f"cores, with weights (sha256) {_digests(found['weights'])}."]
    return "\n".join([*lines, "", "## Protocol", "", *_protocol(sections)]) + "\n"


def _protocol(sections):
    """A line for each point of the protocol; where the sections differ, the line names those that it is of."""
    counts = ", ".join(f"{section} {found['pictures']}" for section, found in sections.items())
    lines, points = [f"- pictures measured: {counts}"], {}
    for section, found in sections.items():
        for name, text in found["protocol"].items():
            points.setdefault(name, {}).setdefault(str(text), []).append(section)
    points.pop("pictures measured", None)
    for name, texts in points.items():
        for text, where in texts.items():
            lines.append(f"- {name}{'' if len(where) == len(sections) else ' (' + ', '.join(where) + ')'}: {text}")
    return lines


def _digests(weights):
    return ", ".join(f"{name} {digest[:12]}" for name, digest in weights.items())


def _in_words(recipe):
    rounds = "; ".join(f"guidance {r['guidance']:g}, start {r['start']} of {r['respacing']}" for r in recipe["rounds"])
    rest = ", ".join(f"{name} {value}" for name, value in recipe.items() if name != "rounds" and value != "")
    return f"{len(recipe['rounds'])} rounds ({rounds}), {rest}"


def _section(section, found):
    rows, keys = found["rows"], list(found["rows"][0]["figures"])
    words = {key: _words(key, found["terms"]) for key in keys}
    timed = ["s an image"] if any(r["seconds"] is not None for r in rows) else []
    lines = _table([section if section in AXES else "", *(words[k] for k in keys), *timed],
                   [[r["name"], *(format_figure(Figure(*r["figures"][k]), 3) for k in keys),
                     *(_seconds(r) for _ in timed)]
                    for r in rows])
    if section == "comparison":
        lines = [*_costs(found), "", *lines]
    elif "recipe" in found["identity"]:  # each section may have been measured with another recipe
        lines = [f"Recipe: {_in_words(found['identity']['recipe'])}.", "", *lines]
    if section in AXES:
        return [f"![curves over {AXES[section]}](results-{section}.png)", "", *lines]
    base = next(r["name"] for r in rows if not r["differences"])
    others = [r for r in rows if r["differences"]]
    if others:
        lines += ["", f"Differences to {base}:", ""]
        lines += _table(["", *(words[k] for k in keys)],
                        [[r["name"], *(_difference(k, Figure(*r["differences"][k])) for k in keys)] for r in others])
        lines += ["", *(_judgement(key, words[key], base, others) for key in _COMPARED if key in words)]
    if section == "comparison":
        minutes = sorted(_minutes(cost) for cost in found["costs"])
        lines += ["", _NOT_SHOWN.format(photos=found["photos"], minutes=f"{minutes[0]:.0f} to {minutes[-1]:.0f}",
                                        millions=max(cost["parameters"] for cost in found["costs"]) / 1e6)]
    if section == "modules" and found["ensemble"] == 1:
        lines += ["", "There are no rows of the ensemble: the checkpoint has one UNet, which may already be a mean."]
    return [*lines, "", f"Score: `{score_formula(found['terms'])}`"] if "score" in words else lines


def _costs(found):
    """Parameters, times and memory of the compared models, and the sheet of their pictures."""
    lines = _table(["", "M parameters", "training", "minutes", "s an image", "GB at most"],
                   [[c["name"], f"{c['parameters'] / 1e6:.2f}",
                     "; ".join(f"{steps} steps of {each:.2f} s" for steps, each in c["training"] if steps is not None)
                     or "as given", f"{_minutes(c):.0f}", f"{c['seconds']:.2f}",
                     f"{c['memory']:.2f}"] for c in found["costs"]])
    return [*lines, "", f"![the same label maps, model by model]({found['sheet']})"]


def _minutes(cost):
    return sum((1 if steps is None else steps) * seconds for steps, seconds in cost["training"]) / 60


def _words(key, terms):
    if key == "score":
        return "contest score A" if len(terms) == 3 else f"contest score over {', '.join(terms)} only"
    return _WORDS[key][0] if key in _WORDS else _QUALITY.get(key, key)


def _seconds(row):
    return "" if row["seconds"] is None else f"{row['seconds']:.2f}"


def _verdict(key, difference):
    """"better", "worse", or "" where the interval of a difference holds 0."""
    if difference.low is None or difference.low <= 0 <= difference.high:
        return ""
    more = _WORDS[key][1] if key in _WORDS else key in ("score", *_QUALITY)
    return "better" if (difference.value > 0) == more else "worse"


def _difference(key, difference):
    verdict = _verdict(key, difference)
    return f"{format_figure(difference, 3)}{', ' if verdict else ''}{verdict}"


def _judgement(key, words, base, rows):
    """A line that sorts the rows by one figure: better than the row `base`, worse, or neither."""
    sorted_rows = {"better": [], "worse": [], "": []}
    for row in rows:
        sorted_rows[_verdict(key, Figure(*row["differences"][key]))].append(row["name"])
    parts = [f"{title}: {'; '.join(sorted_rows[verdict])}" for verdict, title in
             (("better", "better"), ("worse", "worse"), ("", "no significant difference"))
             if sorted_rows[verdict]]
    return f"- {words}, against {base}: {'. '.join(parts)}."


def _table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


# --------------------------------------------------------------------------------------------------------------- curves

def _curves(found, axis):
    """The matplotlib figure of a section: a panel a measure, with the intervals as bands."""
    keys = [key for key in found["rows"][0]["figures"] if not key.startswith("lab_")]
    figure = check_drawing()((3.4 * len(keys), 3.2), layout="constrained")
    for place, key in zip(figure.subplots(1, len(keys)), keys, strict=True):
        for line in dict.fromkeys(row["line"] for row in found["rows"]):
            rows = sorted((row for row in found["rows"] if row["line"] == line), key=lambda row: row["x"])
            x = [row["x"] for row in rows]
            value, low, high = zip(*(row["figures"][key] for row in rows), strict=True)
            drawn, = place.plot(x, value, marker="o", markersize=3, label=line)
            if None not in (*low, *high):
                place.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
        if axis == AXES["steps"]:
            place.set_xscale("log")
            place.legend(fontsize=8)
        place.set_title(_words(key, found["terms"]), fontsize=10)
        place.set_xlabel(axis, fontsize=9)
        place.grid(True, alpha=0.3)
        place.tick_params(labelsize=8)
    return figure
