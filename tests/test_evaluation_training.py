"""Training of the evaluator: the loss falls, a run goes on as if it had not stopped, augmentation moves both alike."""
import csv
import dataclasses
import shutil

import numpy as np
import pytest
from helpers import refused

from jiidm.config import load_config
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_training_folder
from jiidm.data.labels import NO_CLASS, read_label_map
from jiidm.evaluation.segformer import SegformerConfig
from jiidm.evaluation.weights import Known, load_segmenter
from jiidm.training.augmentation import augmented
from jiidm.training.segmenter import (
    SegmenterRun,
    SegmenterTrainer,
    SegmenterTrainingConfig,
    describe_segmenter,
    train_segmenter,
)

pytestmark = pytest.mark.slow

NETWORK = SegformerConfig(29, (8, 16), (1, 1), (1, 2), (2, 1), 2, 16, 64, 48)
RUN = SegmenterRun(NETWORK, SegmenterTrainingConfig(
    steps=150, batch=4, learning_rate=4e-3, warmup=5, save_every=140, sheet_every=0))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("landscapes") / "train"
    write_training_folder(path, ((f"{seed}", *draw_landscape(seed, 64, 48)) for seed in range(4)))
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    train_segmenter(RUN, data, run, validation=data)
    return run


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_loss_falls_and_accuracy_rises(finished):
    table = rows(finished / "segmenter.csv")
    losses, accuracies = ([float(row[name]) for row in table] for name in ("cross_entropy", "mask_accuracy"))
    assert losses[-1] < 0.6 * losses[0] and accuracies[-1] > accuracies[0]
    held_out, = rows(finished / "segmenter-validation.csv")
    assert held_out["step"] == "150" and float(held_out["mask_accuracy"]) > 0.2
    assert load_segmenter(finished / "segmenter.safetensors").network.config == NETWORK


def classes_of(data):
    return {int(c) for path in (data / "labels").iterdir() for c in np.unique(read_label_map(path))}


def test_a_training_writes_what_its_network_is_known_to_be_worth(data, finished, capsys):
    known = load_segmenter(finished / "segmenter.safetensors").known
    assert known.classes == tuple(sorted(classes_of(data))) and known.photos == 4
    held_out, = rows(finished / "segmenter-validation.csv")  # of float32: the file's weights have half precision
    assert known.mask_accuracy == pytest.approx(float(held_out["mask_accuracy"]), abs=0.01)
    assert known.mean_iou == pytest.approx(float(held_out["mean_iou"]), abs=0.1)  # one pixel can make it a class more
    assert capsys.readouterr().err == ""


def test_without_held_out_photos_the_classes_alone_are_known(data, finished, tmp_path):
    shutil.copy(finished / "segmenter.safetensors", tmp_path)
    left_out = min(classes_of(data))
    known = describe_segmenter(tmp_path / "segmenter.safetensors", TrainingFolder(data), ignore=(left_out,))
    assert known == Known(tuple(sorted(classes_of(data) - {left_out})))
    assert load_segmenter(tmp_path / "segmenter.safetensors").known == known


def test_a_resumed_run_is_the_same(data, finished, tmp_path):
    """Runs on from the state of step 140, and has the weights of the run that did not stop."""
    state = next(finished.glob("segmenter-state-0000140*"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / state.name).write_bytes(state.read_bytes())
    train_segmenter(RUN, data, tmp_path / "run", resume="auto")
    assert_same_weights(finished, tmp_path / "run")


def test_sheets_do_not_change_the_training(data, finished, tmp_path):
    config = dataclasses.replace(RUN, train_segmenter=dataclasses.replace(RUN.train_segmenter, sheet_every=142))
    (tmp_path / "run").mkdir()
    state = next(finished.glob("segmenter-state-0000140*"))
    (tmp_path / "run" / state.name).write_bytes(state.read_bytes())
    train_segmenter(config, data, tmp_path / "run", resume="140")
    assert (tmp_path / "run" / "segmenter-0000142.jpg").exists()
    assert_same_weights(finished, tmp_path / "run")


def assert_same_weights(*runs):
    first, second = ({name: p.numpy() for name, p in load_segmenter(run / "segmenter.safetensors").network
                      .named_parameters()} for run in runs)
    for name, value in first.items():
        assert np.abs(value - second[name]).max() <= 2e-3 * max(1e-3, np.abs(value).max()), name


def test_a_run_is_not_written_over(data, finished):
    refused(lambda: train_segmenter(RUN, data, finished), finished, "--resume")


@pytest.mark.parametrize("change, words", [
    ({"steps": 0}, ("steps",)), ({"scale_least": 2.0}, ("scale_least",)), ({"jitter": 1.0}, ("jitter",)),
])
def test_impossible_trainings(data, tmp_path, change, words):
    config = dataclasses.replace(RUN, train_segmenter=dataclasses.replace(RUN.train_segmenter, **change))
    refused(lambda: train_segmenter(config, data, tmp_path / "run"), *words)


def test_configuration_from_yaml(tmp_path):
    path = tmp_path / "segmenter.yaml"
    path.write_text("segmenter: {width: 192, height: 144}\ntrain_segmenter: {steps: 5, ignore: [28]}\n")
    found = load_config(path, SegmenterRun)
    assert found.segmenter == SegformerConfig(width=192, height=144) and found.train_segmenter.ignore == (28,)
    path.write_text("segmenter: {size: 192}\n")
    refused(lambda: load_config(path, SegmenterRun), path, "unknown key 'size'")


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7])
def test_augmentation_moves_photo_and_labels_alike(scale):
    training = SegmenterTrainingConfig(scale_least=scale, scale_most=scale, jitter=0, hue=0)
    labels = np.repeat(np.repeat(np.random.default_rng(0).integers(0, 2, (6, 8), np.uint8), 8, 0), 8, 1)
    photo = np.repeat(labels[..., None] * 255, 3, 2).astype(np.uint8)
    mirrored = set()
    for seed in range(12):
        new_photo, new_labels = augmented(photo, labels, training, np.random.default_rng(seed))
        assert new_photo.shape == photo.shape and new_labels.shape == labels.shape
        known = new_labels != NO_CLASS
        assert known.mean() == pytest.approx(min(1, scale) ** 2, abs=0.05)
        right = (new_photo[..., 0] > 127) == new_labels
        assert right[known].mean() > 0.9 and (new_photo[~known] == 124).all()
        if scale == 1:
            mirrored.add("as it was" if (new_labels == labels).all() else "mirrored")
            assert (new_labels == labels).all() or (new_labels == labels[:, ::-1]).all()
    assert scale != 1 or mirrored == {"as it was", "mirrored"}


def test_colours_change_and_ignored_classes_are_left_out(data, tmp_path):
    config = dataclasses.replace(RUN, train_segmenter=dataclasses.replace(RUN.train_segmenter, ignore=(1,)))
    trainer = SegmenterTrainer(config, TrainingFolder(data), tmp_path)
    first, labels = trainer.batch(3)
    again, _ = trainer.batch(3)
    other, _ = trainer.batch(4)
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert 1 not in labels and NO_CLASS in labels and first.shape == (4, 3, 48, 64)
