"""Files of weights and of configuration: what goes in comes out, and what is wrong is named."""
import dataclasses
import hashlib
import json

import numpy as np
import pytest
import yaml
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from jiidm.checkpoint import (
    Source,
    arrays_of,
    load_checkpoint,
    load_into,
    load_tensors,
    open_checkpoint,
    open_tensors,
    save_checkpoint,
    save_tensors,
    source_of,
)
from jiidm.config import Config, DiffusionConfig, RoundConfig, from_dict, load_config, to_dict
from jiidm.models.blocks import GroupNorm
from jiidm.system.runtime import nn

WEIGHTS = {"a.weight": np.linspace(-3, 3, 24, dtype="float32").reshape(2, 3, 4), "a.bias": np.float32([0.1, 1e-3])}


@pytest.fixture
def saved(tmp_path, tiny_config):
    """A good checkpoint of a UNet."""
    path = tmp_path / "unet.safetensors"
    save_checkpoint(path, "unet", WEIGHTS, tiny_config, 1234)
    return path


def write(path, tensors=None, **changes):
    """Writes a checkpoint whose metadata is a good one's with `changes`; None takes an entry out."""
    metadata = {"format": "jiidm-1", "kind": "unet", "config": json.dumps(to_dict(Config())), "step": "7", **changes}
    save_file(tensors or WEIGHTS, path, {key: value for key, value in metadata.items() if value is not None})
    return path


# ---- checkpoints

@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kind", ["autoencoder", "unet"])
def test_round_trip(tmp_path, tiny_config, kind, dtype):
    path = tmp_path / "weights.safetensors"
    save_checkpoint(path, kind, WEIGHTS, tiny_config, 1234, dtype)
    found = load_checkpoint(path, kind)
    assert (found.path, found.kind, found.config, found.step) == (path, kind, tiny_config, 1234)
    assert found.tensors.keys() == WEIGHTS.keys()
    for name, value in found.tensors.items():
        assert value.dtype == np.float32 and np.array_equal(value, WEIGHTS[name].astype(dtype))
    assert [p.name for p in tmp_path.iterdir()] == ["weights.safetensors"]
    (tmp_path / "any file").touch()
    assert path.stat().st_mode == (tmp_path / "any file").stat().st_mode


def test_failed_save_leaves_the_earlier_file(saved, tiny_config):
    before = saved.read_bytes()
    with pytest.raises(ValueError):
        save_checkpoint(saved, "unet", {"a": np.array(["no number"])}, tiny_config, 1)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1


def test_weights_of_another_layout_in_memory(tmp_path, tiny_config):
    path = tmp_path / "weights.safetensors"
    turned = WEIGHTS["a.weight"].transpose(2, 1, 0)
    save_checkpoint(path, "unet", {"a": turned}, tiny_config, 0, "float32")
    assert np.array_equal(load_checkpoint(path).tensors["a"], turned)


def test_provenance(tmp_path, saved, tiny_config):
    path = tmp_path / "mean.safetensors"
    sources = (source_of(saved, 1234, 0.25), Source("unet-2.safetensors", "ab" * 32, 2, 0.75))
    assert sources[0].sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()
    save_checkpoint(path, "unet", WEIGHTS, tiny_config, 7, note="a mean", provenance=sources)
    for found in (load_checkpoint(path), open_checkpoint(path)):
        assert found.provenance == sources and found.note == "a mean"
        assert found.describe() == (
            f"{path}: unet, step 7; a mean; made from unet.safetensors (step 1234, weight 0.25, sha256 "
            f"{sources[0].sha256[:12]}), unet-2.safetensors (step 2, weight 0.75, sha256 abababababab)")
    assert load_checkpoint(saved).provenance == () and load_checkpoint(saved).note == ""
    assert load_checkpoint(saved).describe() == f"{saved}: unet, step 1234"


class Lazy:
    shape = (2, 3)

    def read(self):
        return np.arange(6, dtype="float64").reshape(self.shape)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_package_reads_what_is_written_tensor_by_tensor(tmp_path, tiny_config, dtype):
    path = tmp_path / "weights.safetensors"
    weights = {**WEIGHTS, "empty": np.zeros((0, 3)), "scalar": np.float32(2), "lazy": Lazy()}
    save_checkpoint(path, "unet", weights, tiny_config, 1, dtype)
    found, opened = load_file(path), open_checkpoint(path).tensors
    assert found.keys() == opened.keys() == weights.keys()
    for name, value in {**weights, "lazy": Lazy().read()}.items():
        assert found[name].dtype == dtype and np.array_equal(found[name], value.astype(dtype))
        assert opened[name].shape == value.shape and np.array_equal(opened[name].read(), found[name])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i8", "u1", "?", "c8"])
def test_tensors_that_the_package_has_written_can_be_opened(tmp_path, dtype):
    arrays = {"a": np.arange(6).reshape(1, 2, 3).astype(dtype), "b": np.zeros(0, dtype), "c": np.ones((), dtype)}
    save_file(arrays, tmp_path / "a.safetensors", {"key": "value"})
    tensors, metadata = open_tensors(tmp_path / "a.safetensors")
    assert metadata == {"key": "value"} and tensors.keys() == arrays.keys()
    for name, value in arrays.items():
        assert np.array_equal(tensors[name].read(), value) and tensors[name].dtype_name == value.dtype.name
        assert tensors[name].nbytes == value.nbytes


def test_a_file_that_ends_early_after_it_was_opened(saved):
    tensor = open_checkpoint(saved).tensors["a.bias"]
    saved.write_bytes(saved.read_bytes()[:-1])
    refused(tensor.read, saved, "ends before byte")
    saved.unlink()
    refused(tensor.read, saved, "cannot be read")


def test_wrong_kind(saved):
    for load in (load_checkpoint, open_checkpoint):
        refused(lambda load=load: load(saved, "autoencoder"), saved, "holds the unet, expected the autoencoder")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_numbers(tmp_path, value):
    weights = {**WEIGHTS, "a.bias": np.float32([0, value])}
    path = write(tmp_path / "weights.safetensors", weights)
    refused(lambda: load_checkpoint(path), path, "a.bias", "NaN")


@pytest.mark.parametrize("share", [0, 4, 0.5, 0.99])
def test_truncated(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[:share if isinstance(share, int) else int(share * len(data))])
    refused(lambda: load_checkpoint(saved), saved, "not a readable safetensors file")
    refused(lambda: open_checkpoint(saved), saved, "not a readable safetensors file")


def test_no_checkpoint(tmp_path):
    refused(lambda: load_checkpoint(tmp_path / "none.safetensors"), "none.safetensors", "no such")
    refused(lambda: load_checkpoint(tmp_path), tmp_path, "no such")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(lambda: load_checkpoint(tmp_path / "text.safetensors"), "text.safetensors", "not a readable safetensors")


def test_foreign_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(WEIGHTS, path)
    assert load_tensors(path)[1] == {}
    refused(lambda: load_checkpoint(path), path, "not a checkpoint of jiidm")
    for changes in ({"format": "pt"}, {"format": None}, {"kind": "a\nb"}, {"kind": None}):
        refused(lambda changes=changes: load_checkpoint(write(path, **changes)), path, "not a checkpoint of jiidm")


@pytest.mark.parametrize("kind", ["gaugan", "clade", "segmenter"])
def test_files_of_other_networks_of_jiidm(tmp_path, kind):
    """They are not called foreign."""
    path = write(tmp_path / "weights.safetensors", kind=kind)
    for load in (load_checkpoint, open_checkpoint):
        for asked in (None, "unet"):
            refused(lambda load=load, asked=asked: load(path, asked), path,
                    f"holds the {kind}, expected an autoencoder or a UNet")


def test_number_formats_that_numpy_lacks(tmp_path):
    """bfloat16 is the upper half of float32; smaller floats are refused."""
    path = tmp_path / "weights.safetensors"
    for dtype, data in (("BF16", b"\x80\x3f\x20\xc0"), ("F8_E5M2", bytes(2))):
        header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data)
        if dtype == "BF16":
            assert load_tensors(path)[0]["a"].tolist() == [1, -2.5]
        else:
            refused(lambda: load_tensors(path), path, "'a' has the number format 'F8_E5M2'")


def test_tensors_keep_their_number_format_and_a_checksum_covers_the_file(tmp_path):
    path = tmp_path / "state.safetensors"
    arrays = {"a": np.arange(3), "b": np.float16([[1, np.nan]]), "c": np.ones((), "?")}
    save_tensors(path, arrays, {"key": "value"}, checksum="sha256")
    found, metadata = load_tensors(path)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype and np.array_equal(found[name], value, equal_nan=name == "b")
    content, checksum = path.read_bytes(), metadata.pop("sha256")
    assert metadata == {"key": "value"} and content.count(checksum.encode()) == 1
    assert hashlib.sha256(content.replace(checksum.encode(), b"0" * 64)).hexdigest() == checksum
    refused(lambda: save_tensors(path, arrays, {}, finite=True), path, "NaN or a number too large for float16 in b")
    assert path.read_bytes() == content


@pytest.mark.parametrize("changes, words", [
    ({"config": json.dumps({"unet": {"model_chanels": 32}})}, "'model_chanels'"),
    ({"config": json.dumps({"unet": {"model_channels": "32"}})}, "model_channels"),
    ({"config": json.dumps([])}, "[]"),
    ({"config": "{"}, "config"),
    ({"config": None}, "config"),
    ({"step": "many"}, "step"),
    ({"step": None}, "step"),
    ({"provenance": "{"}, "readable"),
    ({"provenance": "5"}, "provenance"),
    ({"provenance": "[5]"}, "provenance"),
    ({"provenance": '[{"file": "a"}]'}, "provenance"),
    ({"provenance": '[{"file": "a", "sha256": 3}]'}, "sha256"),
    ({"provenance": '[{"file": "a", "sha256": "0", "weight": -1}]'}, "weight"),
])
def test_broken_metadata(tmp_path, changes, words):
    path = write(tmp_path / "weights.safetensors", **changes)
    refused(lambda: load_checkpoint(path), path, words)


def test_too_large_for_half_precision(tmp_path, tiny_config):
    """A file that cannot be loaded again must not be written."""
    path = tmp_path / "weights.safetensors"
    refused(lambda: save_checkpoint(path, "unet", {"a": np.float32([1e5])}, tiny_config, 0), path, "a")
    assert not path.exists()


# ---- into a network

def network():
    return nn.Sequential(nn.Conv(3, 4, 1), GroupNorm(4, 2, 1e-6))


def test_load_into(tmp_path):
    module = network()
    weights = {name: np.full(value.shape, i, "float32") for i, (name, value) in enumerate(arrays_of(module).items())}
    load_into(module, {name: value.astype("float16") for name, value in weights.items()}, "a file")
    found = arrays_of(module)
    assert found.keys() == weights.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    for name, value in found.items():
        assert value.dtype == np.float32 and np.array_equal(value, weights[name])


def test_all_that_does_not_fit_is_listed_and_nothing_changed():
    module = network()
    before = arrays_of(module)
    weights = {name: value + 1 for name, value in before.items()}
    del weights["0.bias"]
    weights["1.weight"] = np.zeros(5, "float32")
    weights["2.weight"] = np.zeros(5, "float32")
    refused(lambda: load_into(module, weights, "file.safetensors"), "file.safetensors", "missing: 0.bias",
            "unexpected: 2.weight", "mis-shaped: 1.weight (5,) instead of (4,)")
    assert all(np.array_equal(value, before[name]) for name, value in arrays_of(module).items())


def test_long_lists_are_cut():
    refused(lambda: load_into(network(), {f"{i}.x": np.zeros(1) for i in range(20)}, "file"), "and 12 more")


# ---- configuration

def yaml_file(folder, text):
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_yaml_round_trip(tmp_path, tiny_config):
    assert load_config(yaml_file(tmp_path, yaml.safe_dump(to_dict(tiny_config)))) == tiny_config
    assert load_config(yaml_file(tmp_path, "")) == Config()


FLOATS = st.floats(0, 100, allow_subnormal=False)  # Jittor switches the processor to flush these to zero


@given(st.builds(RoundConfig, FLOATS, st.text(), st.integers(0, 10**6)),
       st.builds(DiffusionConfig, st.integers(0, 10**6), FLOATS, FLOATS), st.integers(0, 2**63))
def test_json_round_trip(round_config, diffusion, seed):
    config = Config(diffusion=diffusion, seed=seed)
    config = dataclasses.replace(config, inference=dataclasses.replace(config.inference, rounds=(round_config,) * 2))
    assert from_dict(Config, json.loads(json.dumps(to_dict(config))), "here") == config


def test_yaml_values(tmp_path):
    config = load_config(yaml_file(tmp_path, "diffusion: {beta_start: 1e-3, beta_end: 1}\n"
                                             "unet: {channel_mult: [1, 2]}\ninference: {rounds: [{start: 5}]}"))
    assert config.diffusion.beta_start == 1e-3  # text to YAML 1.1
    assert config.diffusion.beta_end == 1.0 and type(config.diffusion.beta_end) is float
    assert config.unet.channel_mult == (1, 2)
    assert config.inference.rounds == (RoundConfig(start=5),)


@pytest.mark.parametrize("text, words", [
    ("unett: {}", ["'unett'", "unet"]),
    ("unet: {model_chanels: 32}", ["unet", "'model_chanels'", "model_channels"]),
    ("inference: {rounds: [{strat: 5}]}", ["rounds[0]", "'strat'"]),
    ("unet: {model_channels: 32.0}", ["unet: model_channels", "int", "32.0"]),
    ("unet: {model_channels: '32'}", ["int", "'32'"]),
    ("unet: {model_channels: true}", ["int", "True"]),
    ("unet: {model_channels: null}", ["int", "None"]),
    ("unet: {channel_mult: 2}", ["list", "2"]),
    ("unet: {channel_mult: [1, x]}", ["channel_mult[1]", "'x'"]),
    ("unet: 5", ["unet", "5"]),
    ("unet:", ["unet", "None"]),
    ("diffusion: {beta_end: high}", ["beta_end", "float", "'high'"]),
    ("diffusion: {beta_end: .nan}", ["beta_end", "nan"]),
    ("diffusion: {beta_end: false}", ["beta_end", "False"]),
    ("seed: -1", ["seed", "-1"]),
    ("inference: {color_transfer: 3}", ["color_transfer", "str", "3"]),
    ("[1, 2]", ["[1, 2]"]),
    ("just words", ["just words"]),
    ("1: 2", ["unknown key 1"]),
])
def test_wrong_yaml(tmp_path, text, words):
    path = yaml_file(tmp_path, text)
    refused(lambda: load_config(path), path, *words)


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00binary", b"a: !!python/object:os.system {}"])
def test_no_yaml(tmp_path, content):
    path = yaml_file(tmp_path, content)
    refused(lambda: load_config(path), path, "cannot be read as YAML")


def test_missing_yaml(tmp_path):
    refused(lambda: load_config(tmp_path / "none.yaml"), "none.yaml")
    refused(lambda: load_config(tmp_path), tmp_path)
