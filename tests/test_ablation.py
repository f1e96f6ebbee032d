"""The ablation: settings, figures equal to those of the pictures that `infer` makes, what is kept, and its words."""
import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
from helpers import TINY, refused, write_random_weights
from PIL import Image

from benchmarks import ablation, ablation_settings
from benchmarks.ablation_report import markdown_of
from benchmarks.ablation_settings import list_settings
from jiidm import Generator
from jiidm.checkpoint import arrays_of
from jiidm.config import Config, ImageConfig, InferenceConfig, RoundConfig, with_recipe
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TestFolder as Masks
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.evaluation.measure import Protocol, evaluate
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.evaluation.weights import save_segmenter
from jiidm.inference.plan import make_plan
from jiidm.system.runtime import jt

NETWORK = SegformerConfig(29, (8, 16), (1, 1), (1, 2), (2, 1), 2, 16, 64, 48)
ROUNDS = (RoundConfig(6.0, "ddim20", 9), RoundConfig(3.0, "ddim20", 2))
pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("ignore:.*Frechet")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """train/, test/ with 4 label maps, real/, weights/ of two UNets, alone/ of one, and the file of a segmenter."""
    root = tmp_path_factory.mktemp("ablation")
    write_training_folder(root / "train", ((f"style{i}", *draw_landscape((1, i), 48, 32)) for i in range(5)))
    scenes = [(f"mask{i}", *draw_landscape((2, i), 48, 32)) for i in range(4)]
    write_test_folder(root / "test", ((name, labels) for name, _, labels in scenes), TrainingFolder(root / "train"))
    (root / "real").mkdir()
    for name, photo, _ in scenes:
        Image.fromarray(photo).save(root / "real" / f"{name}.png")
    config = dataclasses.replace(TINY, image=ImageConfig(48, 32), inference=InferenceConfig(ROUNDS))
    jt.set_global_seed(1, False)
    save_segmenter(root / "segmenter.safetensors", arrays_of(Segformer(NETWORK)), NETWORK, 0)
    for folder, seeds in (("weights", (1, 2)), ("alone", (1,))):
        write_random_weights(root / folder, config, seeds)
    return root


@pytest.fixture
def tool(place, monkeypatch):
    """Calls the tool with its folders and further arguments; `tool.output` is where its figures go."""
    for name, values in (("GUIDANCE", (1.0, 2.0)), ("STRENGTHS", (0.3,)), ("STEPS", (2, 3))):
        monkeypatch.setattr(ablation_settings, name, values)

    def call(output, *options, checkpoint="weights"):
        folders = {"--labels": "test", "--references": "train", "--checkpoint": checkpoint,
                   "--segmenter": "segmenter.safetensors"}
        given = [text for name, value in folders.items() for text in (name, str(place / value))]
        monkeypatch.setattr(sys, "argv", ["ablation.py", *given, "--resamples", "40", "--output", str(output),
                                          "--docs", str(output / "docs"), *map(str, options)])
        ablation.main()
        path = output / "ablation.json"
        return json.loads(path.read_text()) if path.exists() else None

    return call


def names_of(kept, section):
    return [row["name"] for row in kept["sections"][section]["rows"]]


def test_modules_are_measured_as_infer_makes_them(tool, place, tmp_path):
    kept = tool(tmp_path / "out", "--only", "modules", "real", "--real", place / "real")
    assert names_of(kept, "modules") == [
        "one round", "one round, reinhard at the end", "one round, histogram at the end",
        "one round, transport at the end", "one round, 0.4 of transport at the end",
        "one round, 0.6 of transport at the end", "one round, ensemble", "2 rounds",
        "2 rounds, colour transfer between",
        "all together", "all together, reinhard at the end", "all together, histogram at the end",
        "all together, transport at the end", "all together, 0.4 of transport at the end",
        "all together, 0.6 of transport at the end", "all together, histogram between",
        "all together, transport between", "the paper's three rounds in chains of 50 steps, reinhard between",
        "the paper's three rounds in chains of 50 steps, reinhard between and at the end",
    ]
    rows = {row["name"]: row for row in kept["sections"]["modules"]["rows"]}
    generator = Generator.from_checkpoint(place / "weights")
    for name, settings in (
        ("one round", {"rounds": 1, "ensemble": False}),
        ("one round, ensemble", {"rounds": 1}),
        ("2 rounds", {"rounds": 2, "color_transfer": False, "ensemble": False}),
        ("all together, 0.6 of transport at the end", {"recipe": {"final_color_transfer": "transport",
                                                                  "final_color_share": 0.6}}),
        ("all together, histogram between", {"color_transfer": "histogram"}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for item in Masks(place / "test", place / "train").items:
            generator.infer(item.mask, item.reference, **settings).save(folder / f"{item.mask.stem}.png")
        found = evaluate(folder, place / "test", place / "train", segmenter=place / "segmenter.safetensors",
                         judge=False, protocol=Protocol(resamples=40, frechet_resamples=40)).sets["results"]
        assert rows[name]["figures"] == {key: pytest.approx(list(f), abs=1e-6) for key, f in found.figures.items()}
    for key, (difference, low, high) in rows["2 rounds"]["differences"].items():
        values = [rows[name]["figures"][key][0] for name in ("2 rounds", "one round")]
        assert difference == pytest.approx(values[0] - values[1]) and low <= high
    assert names_of(kept, "real")[::3] == ["real photos", "real photos, transport"]
    styles = [row["figures"]["style"][0] for row in kept["sections"]["real"]["rows"]]
    assert styles[3] == max(styles)
    text = (tmp_path / "out" / "docs" / "measurements.md").read_text()
    assert "Real photos" in text and "no rows of the ensemble" not in text and str(place) not in text


def test_curves_and_options(tool, place, tmp_path):
    kept = tool(tmp_path, "--only", "guidance", "start", "steps", "options", "--limit", 3, checkpoint="alone")
    assert [row["x"] for row in kept["sections"]["guidance"]["rows"]] == [1, 2]
    assert [(row["line"], row["x"]) for row in kept["sections"]["steps"]["rows"]] == [
        ("DDIM", 2), ("DDIM", 3), ("DPM-Solver++", 2), ("DPM-Solver++", 3)]
    assert {name: section["pictures"] for name, section in kept["sections"].items()} == {
        "options": 4, "guidance": 3, "start": 3, "steps": 3}
    base, *options = kept["sections"]["options"]["rows"]
    # each option changes the pictures, and the next setting is made without it
    assert [row["name"] for row in options if row["figures"] == base["figures"]] == []
    assert len(options) == len(ablation_settings.OPTIONS)
    for section in ("guidance", "start", "steps"):
        assert Image.open(tmp_path / "docs" / f"results-{section}.png").width > 500
    assert "results-steps.png" in (tmp_path / "docs" / "measurements.md").read_text()


def test_what_is_measured_stands_until_something_changes(tool, tmp_path, monkeypatch, capsys):
    made = []
    figures = ablation.Studio.measure_setting

    def counted(self, setting, tasks):
        made.append(setting.name)
        return figures(self, setting, tasks)

    monkeypatch.setattr(ablation.Studio, "measure_setting", counted)
    first = tool(tmp_path, "--only", "guidance", checkpoint="alone")
    assert len(made) == 2
    assert tool(tmp_path, "--only", "guidance", checkpoint="alone") == first and len(made) == 2
    assert "already" in capsys.readouterr().out
    for options in (["--seed", 1], ["--seed", 1, "--again"], ["--limit", 2]):
        tool(tmp_path, "--only", "guidance", *options, checkpoint="alone")
    assert len(made) == 8


def test_a_stop_keeps_the_sections_before_it(tool, tmp_path, monkeypatch):
    figures = ablation.Studio.measure_setting

    def stop(self, setting, tasks):
        if setting.name.startswith("start"):
            raise KeyboardInterrupt
        return figures(self, setting, tasks)

    monkeypatch.setattr(ablation.Studio, "measure_setting", stop)
    with pytest.raises(KeyboardInterrupt):
        tool(tmp_path, "--only", "guidance", "start", checkpoint="alone")
    assert list(json.loads((tmp_path / "ablation.json").read_text())["sections"]) == ["guidance"]


def test_ensemble_only_of_several_and_refinement_only_of_several_rounds():
    def names(checkpoints, rounds):
        recipe = InferenceConfig(tuple(RoundConfig(2.0, "ddim20", 5) for _ in range(rounds)))
        generator = SimpleNamespace(config=Config(inference=recipe), checkpoints=[None] * checkpoints)
        return [setting.name for setting in list_settings("modules", generator)]

    assert {"one round, ensemble", "2 rounds", "2 rounds, colour transfer between", "all together"} <= {*names(2, 2)}
    assert not any("ensemble" in name for name in names(1, 2)) and "2 rounds" in names(1, 2)
    assert not any("rounds" in name and "paper" not in name or "together" in name for name in names(1, 1))


def test_wrong_arguments(tool, place, tmp_path):
    refused(lambda: tool(tmp_path, "--limit", 1), "--limit 1", "at least 2")
    refused(lambda: tool(tmp_path, "--real", place / "train"), "mask0.jpg", "missing")
    (tmp_path / "ablation.json").write_text("[1]")
    refused(lambda: tool(tmp_path, "--only", "guidance"), "ablation.json", "remove it")


def test_verdicts_follow_the_intervals():
    def row(name, **differences):
        return {"name": name, "figures": dict.fromkeys(("score", "mask_accuracy", "style", "lab_mean"), up),
                "differences": differences, "seconds": None}

    up, down, none = [0.1, 0.05, 0.15], [-0.1, -0.15, -0.05], [0.01, -0.02, 0.03]
    rows = [row("one round"), row("three", score=up, mask_accuracy=down, style=none, lab_mean=down)]
    kept = {"sections": {"modules": {
        "rows": rows, "terms": ["style"], "pictures": 3, "protocol": {"pictures measured": 3}, "ensemble": 1,
        "identity": {"recipe": {"rounds": [], "sampler": "ddim"}},
        "command": "x", "weights": {"unet": "0123456789abcdef"}, "machine": {"processor": "p", "cores": 2},
    }}}
    text = markdown_of(kept)
    assert "| three | 0.100 [0.050, 0.150], better | -0.100 [-0.150, -0.050], worse | " \
           "0.010 [-0.020, 0.030] | -0.100 [-0.150, -0.050], better |" in text
    assert "- contest score over style only, against one round: better: three." in text
    assert "- mask accuracy, against one round: worse: three." in text
    assert "- style correlation, against one round: no significant difference: three." in text
    assert "Made by `x` on p, 2 cores, with weights (sha256) unet 0123456789ab." in text
    assert "no rows of the ensemble" in text and "Recipe: 0 rounds (), sampler ddim." in text


def test_steps_of_ddim_start_where_the_recipe_does(place):
    generator = Generator.from_checkpoint(place / "alone")
    generator.config = with_recipe(generator.config, {"rounds": [
        {"guidance": 2.0, "respacing": "ddim50", "start": 30}]})
    found = [s for s in ablation_settings.list_settings("steps", generator) if s.line == "DDIM"]
    assert [s.x for s in found] == [10, 20, 50, 100, 200, 300]
    for setting in found:
        settings, = setting.arguments["rounds"]
        assert abs(generator.schedule.respaced(settings.respacing)[settings.start] - 600) <= 10
        planned, = make_plan(generator.config.inference, generator.schedule, setting.arguments["rounds"]).rounds
        assert len(planned.timesteps) == setting.x
