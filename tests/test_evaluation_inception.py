"""The Inception-v3 of the FID, against other programs with the same weights and pictures, and its files."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from foreign_files import torch_legacy, torch_zip
from helpers import refused, relative_error
from inception_peer import SETS, made_up_pictures, made_up_weight
from PIL import Image

from jiidm.checkpoint import arrays_of, source_of
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.evaluation.features import inception_features
from jiidm.evaluation.inception import Inception, _average, inception_input
from jiidm.evaluation.measure import Protocol, evaluate
from jiidm.evaluation.metrics import feature_statistics, frechet_distance
from jiidm.evaluation.report import write_report
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.evaluation.weights import load_inception, save_segmenter
from jiidm.system.runtime import jt

pytestmark = pytest.mark.slow

STORED = Path(__file__).parent / "data" / "inception.npz"


@pytest.fixture(scope="module")
def arrays():
    found = {name: made_up_weight(name, tuple(parameter.shape)) for name, parameter in Inception().named_parameters()}
    assert len(found) == 470 and sum(v.size for v in found.values()) == 21_820_000
    return {**found, "fc.weight": np.zeros((1008, 2048)), "fc.bias": np.zeros(1008)}


@pytest.fixture(scope="module")
def weights(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    path.write_bytes(torch_zip(arrays))
    return path


@pytest.fixture(scope="module")
def pictures():
    random = np.random.default_rng(0)
    noise, ramp = random.integers(0, 256, (60, 80, 3), np.uint8), np.linspace(0, 255, 80).astype(np.uint8)
    return np.stack([noise, np.broadcast_to(ramp[None, :, None], (60, 80, 3))])


@pytest.mark.parametrize("peer", ["pytorch_fid", "torch"])
def test_features_are_those_of_another_program(peer, weights, pictures, tmp_path):
    np.save(tmp_path / "pictures.npy", pictures)
    script = Path(__file__).with_name("inception_peer.py")
    done = subprocess.run([sys.executable, script, peer, weights, tmp_path / "pictures.npy", tmp_path / "out.npy"],
                          capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"{peer} is not installed")
    assert done.returncode == 0, done.stderr
    with jt.no_grad():
        features = load_inception(weights).network(jt.array(np.stack([inception_input(p) for p in pictures])))
    expected = np.load(tmp_path / "out.npy")
    assert expected.shape == (2, 2048) and expected.std() > 0.1
    assert relative_error(features, expected) < 1e-4


@pytest.mark.filterwarnings("ignore:.*Frechet")
def test_features_and_fid_are_those_that_pytorch_fid_gave(weights):
    """As above, and the distance too, without the other program: its numbers are in a file (see inception_peer.py).

    Six pictures give covariances of rank 5, of which pytorch-fid takes the root of the singular product: it came out
    within 2e-6 of the singular values of the 6 x 6 matrix that has the same trace, so 1e-3 is no luck.
    """
    network = inception_features(load_inception(weights))
    features = [network.extract(made_up_pictures(number)) for number in SETS]
    with np.load(STORED) as stored:
        for found, name in zip(features, ("first", "second"), strict=True):
            assert stored[name].std(0).mean() > 0.1 and relative_error(found, stored[name]) < 1e-4
        apart = features[0].mean(0) - features[1].mean(0)
        assert apart @ apart < 0.5 * stored["fid"]  # the covariances have their share in it
        fid = frechet_distance(*(feature_statistics(found) for found in features))
        assert fid == pytest.approx(float(stored["fid"]), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*Frechet")
def test_the_score_of_an_evaluation_with_the_inception_has_the_fid_in_it(weights, tmp_path):
    scenes = [(f"{i}", *draw_landscape(i, 64, 48)) for i in range(2)]  # the fewest that an evaluation takes
    write_training_folder(tmp_path / "train", scenes)
    write_test_folder(tmp_path / "test", ((name, labels) for name, _, labels in scenes),
                      TrainingFolder(tmp_path / "train"))
    (tmp_path / "results").mkdir()
    for name, photo, _ in scenes:
        Image.fromarray(photo // 16 * 16).save(tmp_path / "results" / f"{name}.jpg", quality=95)
    config = SegformerConfig(29, (8, 16), (1, 1), (1, 2), (2, 1), 2, 16, 64, 48)
    sees_sky = {**arrays_of(Segformer(config)), "decode_head.classifier.bias": 1000 * np.eye(29)[1]}
    save_segmenter(tmp_path / "segmenter.safetensors", sees_sky, config, 0)
    found = evaluate(tmp_path / "results", tmp_path / "test", tmp_path / "train", judge=False,
                     segmenter=tmp_path / "segmenter.safetensors", inception=weights,
                     protocol=Protocol(resamples=60, frechet_resamples=40))
    measured, sha256 = found.sets["results"], source_of(weights).sha256
    accuracy, style, fid, score = (measured.figures[name].value for name in ("mask_accuracy", "style", "FID", "score"))
    assert measured.score_terms == ("style", "fid") and found.frechet_name == "FID"
    assert 0 < fid < 100 and accuracy > 0  # each has its share in the score
    terms = 0.3 * (style / 2 + 0.5) + 0.5 * (100 - fid) / 100
    assert score == pytest.approx(accuracy * terms / 0.8) and "FD-segmenter" not in measured.figures
    assert sha256 in found.protocol["FID"] and "bilinear to 299x299" in found.protocol["FID"]
    text = write_report(found, tmp_path / "report")[0].read_text("utf-8")
    assert "| FID |" in text and "contest score over style, fid only" in text and "FD-segmenter" not in text


def test_averages_leave_the_padding_out():
    x = np.random.default_rng(0).standard_normal((1, 2, 5, 6)).astype(np.float32)
    padded = np.pad(x[0].astype(np.float64), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    expected = [[[np.nanmean(padded[c, i:i + 3, j:j + 3]) for j in range(6)] for i in range(5)] for c in range(2)]
    assert relative_error(_average(jt.array(x)), np.array(expected)[None]) < 1e-5


def test_input_is_scaled_and_resized_without_averaging():
    photo = np.zeros((598, 598, 3), np.uint8)
    photo[1::4, 1::4] = photo[2::4, 2::4] = 255
    values = inception_input(photo)
    assert values.shape == (3, 299, 299) and values.min() == -1
    # each sample lies between 2 x 2 pixels
    expected = photo.astype(np.float64).reshape(299, 2, 299, 2, 3).mean((1, 3)).transpose(2, 0, 1) / 127.5 - 1
    assert np.allclose(values, expected, atol=1e-4)


def test_files_that_are_not_the_inception_of_the_fid(arrays, tmp_path):
    def load(content):
        (tmp_path / "x.pth").write_bytes(content)
        return load_inception(tmp_path / "x.pth")

    small = {name: value[:1] * 0 for name, value in arrays.items()}
    refused(lambda: load(torch_zip({"encoder.conv_in.weight": np.zeros(3)})), "x.pth", "not the Inception-v3")
    classes = {**small, "fc.weight": np.zeros((1000, 2))}
    refused(lambda: load(torch_zip(classes)), "1000 classes", "1008")
    refused(lambda: load(torch_zip({**small, "fc.weight": np.zeros(())})), "x.pth", "single number", "1008")
    refused(lambda: load(torch_legacy({**small, "fc.weight": np.zeros((1008, 2))})), "mis-shaped", "Conv2d_1a_3x3")
    refused(lambda: load_inception(tmp_path / "none.pth"), "no such file")
