"""The benchmark's yardstick: the UNet in PyTorch computes what the release and jiidm's UNet compute.

It runs in a process of its own, as in the benchmark: PyTorch and Jittor bring one pool of threads each.
"""
import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, made_up, reference, relative_error

from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.config import AutoencoderConfig, Config, DiffusionConfig, UNetConfig
from jiidm.data.latents import one_hot_batch
from jiidm.diffusion.guidance import Guidance, guided_denoiser
from jiidm.diffusion.schedule import Schedule
from jiidm.models.unet import Conditions, UNet
from jiidm.system.runtime import jt

pytestmark = [pytest.mark.bench, pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed; the benchmark's yardstick needs it: pip install torch",
)]
PARITY = 1e-4  # fp32 sums in another order
EXACT, ROUNDED = ("eager", "channels_last"), ("bf16", "bf16_channels_last")
SCALE = 3.5


@pytest.fixture(autouse=True)
def no_gradients():
    with jt.no_grad():
        yield


def port(weights, inputs, *options):
    """Runs the port with this Python; returns the finished process."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.torch_unet", "--weights", weights, "--inputs", inputs, *options],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True,
    )


def computed(weights, inputs, output, *options):
    """What the port's variants compute, as a dict of arrays."""
    done = port(weights, inputs, "--scale", str(SCALE), "--output", output, *options)
    assert done.returncode == 0, done.stderr
    with np.load(output) as file:
        return dict(file)


def check(results, name, expected, expected_null):
    """The variant's output with and without a mask, and that its guided step follows from them."""
    tolerance = PARITY if name in EXACT else 0.1
    assert relative_error(results[name], expected) < tolerance
    assert relative_error(results[f"{name}_null"], expected_null) < tolerance
    if name in ROUNDED:
        assert relative_error(results[name], expected) > PARITY  # in fp32 it would be no variant
    with_mask, null = (results[key][:, : expected.shape[1] // 2] for key in (name, f"{name}_null"))
    assert relative_error(results[f"{name}_guided"], null + SCALE * (with_mask - null)) < 1e-5


def test_release_parity(reference_unet, tmp_path):
    """The small network of the reference numbers."""
    expected = reference("unet")
    weights, inputs = tmp_path / "unet.safetensors", tmp_path / "inputs.npz"
    save_checkpoint(weights, "unet", arrays_of(reference_unet), Config(unet=reference_unet.config), 0, "float32")
    np.savez(inputs, z=expected["x"], t=expected["t"], mask=one_hot_batch(expected["label"], 29).numpy())
    results = computed(weights, inputs, tmp_path / "out.npz")
    for name in (*EXACT, *ROUNDED):
        check(results, name, expected["out"], expected["out_uncond"])


@pytest.fixture(scope="module")
def tiny(tiny_config, tmp_path_factory):
    """The tiny UNet, its checkpoint, and inputs that the network has to pad, the mask four times as large."""
    folder, random = tmp_path_factory.mktemp("port"), np.random.default_rng(0)
    network = made_up(UNet(tiny_config.unet), 2)
    save_checkpoint(folder / "unet.safetensors", "unet", arrays_of(network), tiny_config, 0, "float32")
    labels = random.integers(0, 5, (2, 10, 13)).repeat(4, axis=1).repeat(4, axis=2)
    np.savez(folder / "inputs.npz", z=random.standard_normal((2, 2, 10, 13), np.float32),
             t=np.array([600, 600], np.int32), mask=one_hot_batch(labels, 5).numpy())
    return network, folder


def test_padded_sizes_and_guidance(tiny):
    network, folder = tiny
    with np.load(folder / "inputs.npz") as file:
        z, t, mask = (jt.array(file[name]) for name in ("z", "t", "mask"))
    results = computed(folder / "unet.safetensors", folder / "inputs.npz", folder / "out.npz", "--variants", *EXACT)
    conditions = Conditions(network, mask, 10, 13)
    guided = guided_denoiser(conditions.predict, Schedule(DiffusionConfig()), Guidance(SCALE))(z, 600)
    for name in EXACT:
        check(results, name, network(z, t, mask).numpy(), network(z, t, mask * 0).numpy())
        assert relative_error(results[f"{name}_guided"], guided) < PARITY


def test_timing(tiny):
    """One line of JSON: each variant's steps without the warm-up, their median and the memory."""
    done = port(tiny[1] / "unet.safetensors", tiny[1] / "inputs.npz", "--steps", "3")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["latents"] == [2, 2, 10, 13]
    assert list(report["variants"]) == [*EXACT, *ROUNDED]
    for figures in report["variants"].values():
        assert len(figures["seconds"]) == 3
        assert figures["median_seconds"] == sorted(figures["seconds"])[1] > 0
        assert figures["peak_resident_bytes"] > 50e6


def test_bad_input(tiny, tmp_path):
    """One line that names the file, and exit code 2."""
    weights, inputs = tiny[1] / "unet.safetensors", tiny[1] / "inputs.npz"
    with np.load(inputs) as file:
        np.savez(tmp_path / "inputs.npz", z=file["z"], t=file["t"], mask=file["mask"][:, 1:])
    arrays = {"post_quant_conv.weight": np.zeros((2, 2), "float32")}
    foreign = Config(autoencoder=AutoencoderConfig(ch=16), unet=UNetConfig(model_channels=32))
    save_checkpoint(tmp_path / "autoencoder.safetensors", "autoencoder", arrays, foreign, 0)
    save_checkpoint(tmp_path / "unet.safetensors", "unet", arrays, foreign, 0)
    for first, second, word in [
        (tmp_path / "missing.safetensors", inputs, "missing.safetensors"),
        (inputs, inputs, "not a readable safetensors file"),
        (tmp_path / "autoencoder.safetensors", inputs, "expected the unet"),
        (tmp_path / "unet.safetensors", inputs, "Missing key(s)"),
        (weights, weights, "expected a .npz file"),
        (weights, tmp_path / "inputs.npz", "mask (2, 4, 40, 52)"),
    ]:
        done = port(first, second)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert word in done.stderr
