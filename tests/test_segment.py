"""Label maps from photos: the command, the choice of a segmenter, and what becomes of its outputs."""
from types import SimpleNamespace

import numpy as np
import pytest
from foreign_files import hugging_face, torch_zip
from helpers import refused, run_main
from PIL import Image

from jiidm.checkpoint import arrays_of, load_tensors
from jiidm.data.classes import CONTEST, table_of
from jiidm.data.labels import CLASSES, read_label_map
from jiidm.data.pictures import read_photo
from jiidm.data.vocabulary import Vocabulary
from jiidm.evaluation import segment as segment_module
from jiidm.evaluation.class_maps import class_map, merge_outputs
from jiidm.evaluation.features import predict
from jiidm.evaluation.judge import NOTHING, Judge, JudgeConfig
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.evaluation.segment import PhotoSegmenter, open_segmenter
from jiidm.evaluation.weights import load_segmenter, save_segmenter
from jiidm.painter.engine import Engine

TINY = SegformerConfig(5, (8, 16), (1, 2), (1, 2), (2, 1), 2, 12, 48, 32)
SKY, WATER, SEA, TREE, ROAD = (CLASSES.index(name) for name in ("sky", "water", "sea", "tree", "road"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of a tiny segmenter."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_segmenter(path, arrays_of(Segformer(TINY)), TINY, 1)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of two photos of different sizes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.jpg", (50, 70, 3)), ("b.png", (33, 21, 3))):
        Image.fromarray(np.random.default_rng(1).integers(0, 256, size, np.uint8)).save(folder / name)
    return folder


# ------------------------------------------------------------------------------------------------------------- outputs

def test_outputs_of_one_class_add_their_probabilities():
    logits = np.log(np.float32([[0.3], [0.25], [0.2], [0.25]])).reshape(1, 4, 1, 1)
    merged, classes = merge_outputs(logits, (7, 3, 9, 3))
    assert classes == (3, 7, 9) and np.allclose(np.exp(merged).ravel(), [0.5, 0.3, 0.2])
    same, classes = merge_outputs(logits, (9, 7, 3, 1))
    assert same is logits and classes == (9, 7, 3, 1)


def test_class_maps_enlarge_logits_and_know_how_sure_they_are():
    logits = np.float32([[[4, 0]], [[0, 4]], [[1, 1]]])
    labels, confidence = class_map(logits, (2, 4), (5, 0, 2), with_confidence=True)
    assert labels.tolist() == [[5, 5, 0, 0]] * 2 and np.array_equal(labels, class_map(logits, (2, 4), (5, 0, 2))[0])
    assert confidence[0, 0] == pytest.approx(np.exp(4) / (np.exp(4) + np.exp(1) + 1), rel=1e-5)
    assert confidence[0, 1] == pytest.approx(np.exp(3) / (np.exp(3) + np.exp(1) + np.exp(1)), rel=1e-5)


def test_large_maps_are_made_in_bands(monkeypatch):
    logits = np.random.default_rng(0).standard_normal((3, 6, 5)).astype(np.float32)
    whole = class_map(logits, (31, 40), with_confidence=True)
    monkeypatch.setattr("jiidm.evaluation.class_maps._BAND", 3 * 40 * 4)
    bands = class_map(logits, (31, 40), with_confidence=True)
    assert np.array_equal(whole[0], bands[0]) and np.allclose(whole[1], bands[1], atol=1e-6)


def test_a_segmenter_keeps_to_the_classes_that_weights_have_seen():
    logits, photo = np.log(np.float32([0.4, 0.35, 0.15, 0.1])).reshape(4, 1, 1), np.zeros((2, 2, 3), np.uint8)
    plain = PhotoSegmenter("x", "", lambda photo: logits, (ROAD, SEA, WATER, SKY))
    assert plain.segment(photo).labels[0, 0] == ROAD
    mine = table_of(["meadow", "sky", "sea", "water"])
    labels, confidence = plain.for_weights(Vocabulary(mine, known=("meadow", "sky", "water"))).segment(photo)
    # sea counts as water; no stand-in for a road: it is left out; numbers are the weights'
    assert (labels == 3).all() and np.allclose(confidence, 0.5 / 0.6)
    refused(lambda: plain.for_weights(Vocabulary(table_of(["meadow", "cloud"]))), "segmenter x", "meadow, cloud")


def test_the_judge_names_a_class_where_it_recognises_nothing(monkeypatch):
    class Network:
        config, classes = JudgeConfig(), (SKY, NOTHING, TREE)

        def logits(self, pictures):
            return np.float32([1, 5, 2]).reshape(1, 3, 1, 1).repeat(len(pictures), 0), None

    monkeypatch.setattr(segment_module.judge, "load_judge", lambda path: Network())
    segmenter = open_segmenter("judge")
    assert segmenter.classes == (SKY, TREE) and "2 classes" in segmenter.about
    labels, confidence = segmenter.segment(np.zeros((3, 5, 3), np.uint8))
    assert (labels == TREE).all() and labels.shape == (3, 5)
    assert np.allclose(confidence, 1 / (1 + np.exp(-1)))


def test_the_better_segmenter_is_taken_where_it_is_installed(monkeypatch):
    monkeypatch.setattr(segment_module, "efficientnet_installed", lambda variant: False)
    assert open_segmenter().name == "small" and set(open_segmenter().classes) == set(range(29))
    assert open_segmenter("small").segment(np.full((20, 31, 3), 200, np.uint8)).labels.shape == (20, 31)
    monkeypatch.setattr(segment_module, "efficientnet_installed", lambda variant: True)
    monkeypatch.setattr(segment_module.judge, "load_judge", lambda path: Judge.__new__(Judge))
    monkeypatch.setattr(segment_module, "_of_judge", lambda name, network: name)
    assert open_segmenter() == "judge"


def test_the_painter_takes_the_default_segmenter_in_the_classes_of_its_weights(monkeypatch):
    engine = Engine.__new__(Engine)
    engine._generator = SimpleNamespace(vocabulary=Vocabulary(CONTEST, known=("sky", "water")))
    logits = np.float32([[0, 0, 9, 9], [9, 9, 0, 0]]).reshape(2, 1, 4)
    monkeypatch.setattr(segment_module, "open_segmenter",
                        lambda: PhotoSegmenter("x", "", lambda photo: logits, (SEA, SKY)))
    labels = engine.segment(np.zeros((40, 90, 3), np.uint8), 8, 4)
    assert labels.shape == (4, 8) and labels[0].tolist() == [SKY] * 4 + [WATER] * 4


# ------------------------------------------------------------------------------------------------------------- command

def test_maps_have_the_photos_size_and_the_classes_colours(weights, photos, tmp_path):
    out = tmp_path / "maps"
    done = run_main("segment", photos, "-o", out, "--segmenter", weights, "--colors", "--overlay", "--confidence")
    assert done.returncode == 0, done.stderr
    assert f"segmenter: {weights}: SegFormer for 48x32, 5 classes" in done.stdout
    segmenter = open_segmenter(weights)
    for name, file, size in (("a", "a.jpg", (50, 70)), ("b", "b.png", (33, 21))):
        photo, labels = read_photo(photos / file), read_label_map(out / f"{name}.png")
        expected, confidence = segmenter.segment(photo)
        assert labels.shape == size and np.array_equal(labels, expected) and labels.max() < 5
        assert Image.open(out / f"{name}.png").mode == "P"
        colors = np.asarray(Image.open(out / f"{name}.png").convert("RGB"))
        assert np.array_equal(colors, segmenter.table.palette[labels])
        assert np.array_equal(np.asarray(Image.open(out / "colors" / f"{name}.png")), colors)
        grey = Image.open(out / "confidence" / f"{name}.png")
        assert grey.mode == "L" and np.abs(np.asarray(grey) - 255 * confidence).max() <= 0.5
        overlay = read_photo(out / "overlay" / f"{name}.jpg").astype(int)
        assert np.abs(overlay.mean() - (photo.astype(int) + colors).mean() / 2) < 3
    assert f"{out / 'a.png'}: 70x50, " in done.stdout


def test_maps_are_not_replaced_by_mistake_and_a_broken_photo_stops_no_other(weights, photos, tmp_path):
    out = tmp_path / "maps"
    assert run_main("segment", photos / "a.jpg", "-o", out, "--segmenter", weights).returncode == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.png"]
    again = run_main("segment", photos, "-o", out, "--segmenter", weights)
    assert again.returncode == 2 and "a.png: exists" in again.stderr and "--overwrite" in again.stderr
    (photos / "0.jpg").write_bytes(b"no photo")
    done = run_main("segment", photos, "-o", out, "--segmenter", weights, "--overwrite")
    assert done.returncode == 1 and "not made: " in done.stdout and "0.jpg" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png"]


def test_public_weights_of_other_classes(weights, photos, tmp_path):
    arrays = load_tensors(weights)[0]
    (tmp_path / "public.pth").write_bytes(torch_zip(hugging_face(arrays)))
    (tmp_path / "mine.yaml").write_text(
        "target: contest\nclasses:\n- {number: 0, name: lake}\n- {number: 1, name: bay, becomes: sea}\n"
        "- {number: 4, name: ocean, becomes: sea}\n")
    done = run_main("segment", photos / "a.jpg", "-o", tmp_path / "maps", "--segmenter", tmp_path / "public.pth",
                    "--segmenter-classes", tmp_path / "mine.yaml")
    assert done.returncode == 0 and "SegFormer for 512x384, 2 classes" in done.stdout, done.stderr
    labels = read_label_map(tmp_path / "maps/a.png")
    evaluator = load_segmenter(tmp_path / "public.pth", tmp_path / "mine.yaml")
    (expected,) = predict(evaluator, [read_photo(photos / "a.jpg")], [labels.shape])
    assert np.array_equal(labels, expected)
    assert {CLASSES[c] for c in np.unique(labels)} <= {"lake", "sea"}
    refused = run_main("segment", photos / "a.jpg", "-o", tmp_path / "other", "--segmenter", tmp_path / "public.pth")
    assert refused.returncode == 2 and "predicts 5 classes" in refused.stderr and not (tmp_path / "other").exists()


def test_mistakes(weights, photos, tmp_path):
    def fails(*arguments):
        done = run_main("segment", *arguments, "--segmenter", weights)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
        return done.stderr

    (tmp_path / "empty").mkdir()
    assert "empty: no .jpg file" in fails(tmp_path / "empty", "-o", tmp_path / "maps")
    assert "none.jpg: no such file" in fails(tmp_path / "none.jpg", "-o", tmp_path / "maps")
    assert "a folder for the maps" in fails(photos, "-o", tmp_path / "map.png")
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    assert "a.png: the name of" in fails(photos, "-o", tmp_path / "maps")
    assert not (tmp_path / "maps").exists()
    refused(lambda: open_segmenter(tmp_path / "none.safetensors"), "none.safetensors", "no such file")
