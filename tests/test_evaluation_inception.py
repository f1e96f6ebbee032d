"""The Inception-v3 of the FID, against other programs with the same weights and pictures, and its files."""
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from foreign_files import torch_legacy, torch_zip
from helpers import refused, relative_error

from jiidm.evaluation.inception import Inception, _average, inception_input
from jiidm.evaluation.weights import load_inception
from jiidm.runtime import jt


@pytest.fixture(scope="module")
def arrays():
    """Weights with which the numbers neither vanish nor explode on their way through the network."""
    found = {}
    for name, parameter in Inception().named_parameters():
        random, shape = np.random.RandomState(zlib.crc32(name.encode())), tuple(parameter.shape)
        if name.endswith("conv.weight"):
            found[name] = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        else:
            spread = name.endswith(("running_var", "bn.weight"))
            found[name] = random.uniform(0.5, 1.5, shape) if spread else 0.1 * random.standard_normal(shape)
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
    refused(lambda: load(torch_legacy({**small, "fc.weight": np.zeros((1008, 2))})), "mis-shaped", "Conv2d_1a_3x3")
    refused(lambda: load_inception(tmp_path / "none.pth"), "no such file")
