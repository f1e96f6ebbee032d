"""Checkpoints averaged into one file: the same numbers as the model ensemble, with its sources named."""
import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, refused, run_main

from jiidm.checkpoint import load_checkpoint, open_checkpoint, save_checkpoint
from jiidm.inference.ensemble import average, merge_checkpoints

SHAPES = {"a.weight": (3, 4, 2), "a.bias": (3,), "b": ()}


def save(path, config, step, kind="unet", dtype="float32", shapes=SHAPES, **changes):
    random = np.random.default_rng(step)
    tensors = {name: random.standard_normal(shape).astype("float32") for name, shape in shapes.items()}
    save_checkpoint(path, kind, {**tensors, **changes}, config, step, dtype)
    return path


@pytest.fixture
def paths(tmp_path, tiny_config):
    """Three checkpoints of one run, not in the order of their steps."""
    return [save(tmp_path / f"unet-{step}.safetensors", tiny_config, step) for step in (300, 100, 200)]


@pytest.mark.parametrize("weights, shares", [(True, (1 / 3,) * 3), ([1, 0, 3], (0.25, 0, 0.75))])
def test_mean(paths, tmp_path, tiny_config, weights, shares):
    merged = merge_checkpoints(paths, tmp_path / "mean.safetensors", weights)
    found = load_checkpoint(tmp_path / "mean.safetensors", "unet")
    expected = average([load_checkpoint(path) for path in paths], shares)
    assert found.tensors.keys() == expected.keys() == merged.tensors.keys()
    for name, value in expected.items():
        assert np.array_equal(found.tensors[name], value.read()) and merged.tensors[name].dtype_name == "float32"
    assert (found.step, found.config, found.note) == (300, tiny_config, "mean of 3 checkpoints")
    assert [(s.file, s.step, s.weight) for s in found.provenance] == [
        (path.name, step, share) for path, step, share in zip(paths, (300, 100, 200), shares, strict=True)]
    assert [s.sha256 for s in found.provenance] == [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]


def test_the_origin_stays(paths, tmp_path, tiny_config):
    found = load_checkpoint(paths[0])
    save_checkpoint(paths[0], found.kind, found.tensors, found.config, found.step, "float32", "fine-tuned")
    assert merge_checkpoints(paths, tmp_path / "mean.safetensors").note == "fine-tuned; mean of 3 checkpoints"


def test_half_precision_stays(tmp_path, tiny_config):
    paths = [save(tmp_path / f"{step}.safetensors", tiny_config, step, dtype="float16") for step in (1, 2)]
    merged = merge_checkpoints(paths, tmp_path / "mean.safetensors")
    expected = average([load_checkpoint(path) for path in paths], (0.5, 0.5))
    for name, value in expected.items():
        assert merged.tensors[name].dtype_name == "float16"
        assert np.array_equal(merged.tensors[name].read(), value.read().astype("float16"))
    paths[1] = save(paths[1], tiny_config, 2)
    merged = merge_checkpoints(paths, tmp_path / "mean.safetensors")
    assert {tensor.dtype_name for tensor in merged.tensors.values()} == {"float32"}


def test_the_configuration_is_that_of_the_last_step(paths, tmp_path, tiny_config):
    other = dataclasses.replace(tiny_config, seed=99)
    save(paths[1], other, 900)
    assert merge_checkpoints(paths, tmp_path / "mean.safetensors").config == other


def test_checkpoints_that_cannot_be_averaged(paths, tmp_path, tiny_config):
    def merge(*others, output="mean.safetensors", weights=True):
        return lambda: merge_checkpoints([paths[0], *others], tmp_path / output, weights)

    def other(**options):
        return save(tmp_path / "other.safetensors", options.pop("config", tiny_config), 7, **options)

    unet = dataclasses.replace(tiny_config.unet, norm_groups=4)
    refused(merge(), "1 checkpoint given")
    refused(merge(other(kind="autoencoder")), "other.safetensors: holds the autoencoder", paths[0])
    refused(merge(other(kind="gaugan")), "other.safetensors: holds the gaugan, expected an autoencoder or a UNet")
    refused(merge(other(shapes={"a.weight": (3, 4, 2), "a.bias": (3,)})), "other.safetensors", "b is missing here")
    refused(merge(other(shapes={**SHAPES, "c": (1,)})), "other.safetensors", "c is (1,) here and missing there")
    refused(merge(other(shapes={**SHAPES, "a.bias": (4,)})), "other.safetensors", "a.bias is (4,) here and (3,) there")
    refused(merge(other(config=dataclasses.replace(tiny_config, unet=unet))), "other.safetensors", "unet section")
    refused(merge(paths[1], weights=[1]), "[1]", "2 weights")
    refused(merge(paths[1], weights=[1, -1]), "2 weights")
    refused(merge(paths[1], weights=[0, 0]), "2 weights")
    refused(merge(paths[1], output="mean.pt"), "mean.pt", ".safetensors")
    refused(merge(paths[1], output=paths[1].name), paths[1], "choose another name")
    refused(merge(tmp_path / "none.safetensors"), "none.safetensors", "no such checkpoint")
    broken = other()
    content = bytearray(broken.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    broken.write_bytes(content)
    refused(merge(broken), broken, "NaN or Inf in b")
    broken.write_bytes(content[:-1])
    refused(merge(broken), broken, "not a readable safetensors file")
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in [*paths, broken]}


def test_tool(paths, tmp_path):
    target = tmp_path / "mean.safetensors"
    done = run_main("merge", *paths, "-o", target, "--weights", 1, 2, 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{target}: unet, step 300; mean of 3 checkpoints; made from unet-300.safetensors (")
    assert "unet-100.safetensors (step 100, weight 0.5, sha256 " in done.stdout
    assert open_checkpoint(target).provenance[1].weight == 0.5
    inspected = run_main("convert", target, "--inspect")
    assert done.stdout in inspected.stdout, inspected.stderr
    for arguments in ((paths[0],), (*paths, "--weights", 1, 2), (*paths, "--weights", "nan", 1, 2)):
        done = run_main("merge", "-o", tmp_path / "bad.safetensors", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "bad.safetensors").exists()


def test_memory_is_that_of_a_few_tensors(tmp_path, tiny_config):
    """Peak of the process that merges two files of 64 MB, of tensors of 4 MB."""
    shapes = {str(i): (1024, 1024) for i in range(16)}
    paths = [save(tmp_path / f"{step}.safetensors", tiny_config, step, shapes=shapes) for step in (1, 2)]
    script = ("import sys\nfrom jiidm.inference.ensemble import merge_checkpoints\n"
              "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\nbefore = peak()\n"
              "merge_checkpoints(sys.argv[1:3], sys.argv[3])\nprint(peak() - before, 'jittor' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script, *paths, tmp_path / "mean.safetensors"], cwd=ROOT, text=True,
                          capture_output=True)
    kilobytes, jittor = done.stdout.split()
    assert int(kilobytes) < 48 * 1024 and jittor == "False", done.stderr
