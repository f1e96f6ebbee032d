"""Weights of other makes become checkpoints of jiidm: every format, naming and network that is out there."""
import dataclasses
import math
import pickle

import foreign_files as made
import numpy as np
import pytest
import yaml
from helpers import reference_shapes, refused, resident_bytes, run_main

from jiidm.checkpoint import load_checkpoint, save_checkpoint
from jiidm.config import AutoencoderConfig, UNetConfig, to_dict
from jiidm.foreign.architecture import expected_shapes, infer_section
from jiidm.foreign.archive import open_weights
from jiidm.foreign.convert import list_tensors, plan_conversion, write_checkpoint

KINDS = ("autoencoder", "unet")


def numbers(kind, config, seed=0):
    """Arrays by name that the network of `kind` could have."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype("float32")
            for name, shape in expected_shapes(kind, getattr(config, kind)).items()}


@pytest.fixture
def config_file(tmp_path, tiny_config):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_dict(tiny_config)))
    return path


@pytest.fixture
def convert(tmp_path, config_file):
    """A function that converts a file of the given bytes and loads the result."""
    def convert(content, half=False, config=config_file, **options):
        source, target = tmp_path / "weights.any", tmp_path / "converted.safetensors"
        source.write_bytes(content)
        write_checkpoint(plan_conversion(open_weights(source), config=config, **options), target, half)
        return load_checkpoint(target)
    return convert


def same(tensors, arrays):
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(tensors[name], array), name
    return True


# ---- formats

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", made.FORMATS)
def test_formats(convert, tiny_config, make, kind):
    arrays = numbers(kind, tiny_config)
    found = convert(made.FORMATS[make](arrays))
    assert same(found.tensors, arrays) and (found.kind, found.config, found.step) == (kind, tiny_config, 0)
    assert [s.file for s in found.provenance] == ["weights.any"]


@pytest.mark.parametrize("dtype", ["f2", "f8", "bfloat16"])
@pytest.mark.parametrize("make", [made.torch_zip, made.torch_legacy, made.safetensors])
def test_number_formats(convert, tiny_config, make, dtype):
    arrays = numbers("autoencoder", tiny_config)
    if dtype == "bfloat16":
        stored = {name: (np.frombuffer(made.bfloat16(a), "<u2").astype("u4") << 16).view("f4").reshape(a.shape)
                  for name, a in arrays.items()}
    else:
        stored = {name: a.astype(dtype).astype("f4") for name, a in arrays.items()}
    assert same(convert(make(arrays, dtype)).tensors, stored)
    assert same(convert(make(arrays, dtype), half=True).tensors, {n: a.astype("f2") for n, a in stored.items()})


def test_big_endian(convert, tiny_config):
    arrays = numbers("autoencoder", tiny_config)
    assert same(convert(made.torch_zip(arrays, order=">")).tensors, arrays)
    assert same(convert(pickle.dumps({name: a.astype(">f4") for name, a in arrays.items()})).tensors, arrays)


def test_views_of_one_storage(convert, tiny_config):
    """Every tensor a view of one storage, matrices and kernels transposed in it."""
    arrays, tensors, pieces, start = numbers("unet", tiny_config), {}, [], 5
    total = start + sum(a.size for a in arrays.values())
    for name, a in arrays.items():
        order = tuple(reversed(range(a.ndim)))
        turned = np.ascontiguousarray(a.transpose(order))
        strides = tuple(np.array(turned.strides)[list(order)].tolist())
        tensors[name] = made.tensor("0", a.shape, numel=total, start=start, strides=tuple(s // 4 for s in strides))
        pieces.append(turned.ravel())
        start += a.size
    storage = made.raw(np.concatenate([np.zeros(5), *pieces]), "f4")
    assert same(convert(made.zip_file(tensors, {"0": storage})).tensors, arrays)


def test_arrays_in_the_order_of_fortran(convert, tiny_config):
    arrays = numbers("unet", tiny_config)
    for protocol in (2, 5):
        content = pickle.dumps({name: np.asfortranarray(a) for name, a in arrays.items()}, protocol)
        assert same(convert(content).tensors, arrays)


def test_parameters_and_what_trainers_keep(convert, tiny_config):
    def wrap(tensors):
        parameter = made.Global("torch._utils", "_rebuild_parameter")
        state = {name: made.Call(parameter, (t, True, made.ORDERED_DICT)) for name, t in tensors.items()}
        callback = made.Global("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
        ordered = made.Call(made.Global("collections", "OrderedDict"), (), {"_metadata": {"": {"version": 1}}})
        return {
            "epoch": 3, "global_step": 1234, "loss": 0.5, "callbacks": {callback: {"best": None, "monitor": "val"}},
            "optimizer_states": [{"state": {0: {"exp_avg": tensors["out.2.bias"]}, -1: []}, "on": True}],
            "settings": made.Call(made.Global("argparse", "Namespace"), (), {"lr": 1e-4}),
            "state_dict": made.Raw(made.opcodes(ordered) + b"(" + made.opcodes(state)[2:]),
        }
    arrays = numbers("unet", tiny_config)
    for make in (made.torch_zip, made.torch_legacy):
        found = convert(make(arrays, wrap=wrap))
        assert same(found.tensors, arrays) and found.step == 1234
        assert convert(make(arrays, wrap=wrap), step=7).step == 7


def test_jittors_own_writer(convert, tiny_config, tmp_path):
    from jiidm.system.runtime import jt

    arrays = numbers("autoencoder", tiny_config)
    for values in (arrays, {name: jt.array(a) for name, a in arrays.items()}):
        jt.save(values, str(tmp_path / "weights.pkl"))
        assert same(convert((tmp_path / "weights.pkl").read_bytes()).tensors, arrays)


def test_pytorchs_own_writer(convert, tiny_config, tmp_path):
    torch = pytest.importorskip("torch")
    arrays = numbers("unet", tiny_config)
    tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
    tensors["out.2.weight"] = torch.nn.Parameter(tensors["out.2.weight"].permute(1, 0, 2, 3).contiguous()
                                                 .permute(1, 0, 2, 3))
    half = {name: t.detach().bfloat16() for name, t in tensors.items()}
    for zipped in (True, False):
        torch.save({"state_dict": tensors, "global_step": 5}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert same(convert((tmp_path / "w.pt").read_bytes()).tensors, arrays)
        torch.save(half, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
        assert same(convert((tmp_path / "w.pt").read_bytes()).tensors, {n: t.float().numpy() for n, t in half.items()})


# ---- naming

@pytest.fixture
def diffusion_file(tiny_config):
    """A checkpoint of latent diffusion: both networks, averages without dots, a schedule."""
    unet, autoencoder = numbers("unet", tiny_config), numbers("autoencoder", tiny_config, 1)
    arrays = {
        **{f"model.diffusion_model.{name}": a for name, a in unet.items()},
        **{"model_ema." + f"diffusion_model.{name}".replace(".", ""): a + 1 for name, a in unet.items()},
        **{f"first_stage_model.{name}": a for name, a in autoencoder.items()},
        "model_ema.decay": np.float32(0.99), "betas": np.zeros(3, "f4"), "first_stage_model.loss.w": np.zeros(2, "f4"),
    }
    content = made.torch_zip(arrays, wrap=lambda tensors: {"state_dict": tensors, "global_step": 9})
    return content, unet, autoencoder


def test_latent_diffusion(convert, diffusion_file):
    content, unet, autoencoder = diffusion_file
    assert same(convert(content, kind="unet").tensors, unet)
    assert same(convert(content, kind="autoencoder").tensors, autoencoder)
    averaged = convert(content, kind="unet", ema=True)
    assert same(averaged.tensors, {name: a + 1 for name, a in unet.items()}) and "averaged" in averaged.note
    refused(lambda: convert(content), "an autoencoder and a UNet", "--kind")
    refused(lambda: convert(content, kind="autoencoder", ema=True), "no averaged copy", "leave out --ema")


@pytest.mark.parametrize("plain, averaged", [("model.", "model_ema."), ("", "ema."), ("net.", "params_ema.")])
def test_averages_under_their_own_names(convert, tiny_config, plain, averaged):
    arrays = numbers("autoencoder", tiny_config)
    content = made.torch_zip({**{plain + n: a for n, a in arrays.items()},
                              **{averaged + n: a + 1 for n, a in arrays.items()}, "optimizer.step": np.zeros(1, "f4")})
    assert same(convert(content).tensors, arrays)
    assert same(convert(content, ema=True).tensors, {n: a + 1 for n, a in arrays.items()})


def test_prefixes(convert, tiny_config):
    arrays = numbers("unet", tiny_config)
    for prefix in ("module.", "a.b.c."):
        assert same(convert(made.safetensors({prefix + n: a for n, a in arrays.items()})).tensors, arrays)
    twice = {**{f"a.{n}": a for n, a in arrays.items()}, **{f"b.{n}": a for n, a in arrays.items()}}
    refused(lambda: convert(made.jittor_pickle(twice)), "2 copies of the unet", "a., b.")
    refused(lambda: convert(made.jittor_pickle(arrays), ema=True), "no averaged copy of 278 of 278")


def test_ones_at_the_end_of_a_shape(convert, tiny_config):
    """Attention is stored as linear layers by some, as convolutions of one or two dimensions by others."""
    for kind in KINDS:
        arrays = numbers(kind, tiny_config)
        flat = {n: a.reshape([s for s in a.shape if s > 1]) if a.ndim > 2 and a.shape[-1] == 1 else a[..., None]
                if a.ndim == 3 else a for n, a in arrays.items()}
        assert any(flat[n].shape != a.shape for n, a in arrays.items())
        assert same(convert(made.torch_zip(flat)).tensors, arrays)


# ---- configuration

@pytest.mark.parametrize("kind, section", [("autoencoder", AutoencoderConfig()), ("unet", UNetConfig())])
def test_published_networks(kind, section):
    shapes = {name: tuple(shape) for name, shape in reference_shapes(kind).items()}
    assert expected_shapes(kind, section) == shapes
    assert infer_section(kind, shapes, section, "file") == section


UNETS = [UNetConfig(model_channels=64, channel_mult=mult, num_res_blocks=blocks, attention_resolutions=attention)
         for mult in ((1,), (1, 1), (1, 2, 2, 4)) for blocks in (1, 3) for attention in ((), (1,), (2, 8))]


@pytest.mark.parametrize("section", [
    *UNETS, AutoencoderConfig(ch=64, ch_mult=(1,), num_res_blocks=1), AutoencoderConfig(ch_mult=(1, 1, 2, 4)),
])
def test_sections_are_read_from_shapes(section):
    kind, default = ("unet", UNetConfig()) if isinstance(section, UNetConfig) else ("autoencoder", AutoencoderConfig())
    shapes = expected_shapes(kind, section)
    found = infer_section(kind, shapes, default, "file")
    if kind == "unet":  # an attention factor that no level has is not in the shapes
        levels = len(section.channel_mult)
        factors = tuple(f for f in section.attention_resolutions if f < 2**levels)
        section = dataclasses.replace(section, attention_resolutions=factors)
    assert found == section


def test_shapes_take_no_memory():
    """Nearly two billion parameters: Jittor computes none of them."""
    expected_shapes("unet", UNetConfig())
    before = resident_bytes()
    shapes = expected_shapes("unet", UNetConfig(model_channels=512))
    assert sum(math.prod(shape) for shape in shapes.values()) > 1.8e9
    assert resident_bytes() - before < 50 << 20


@pytest.mark.parametrize("kind, name, shape, words", [
    ("autoencoder", "encoder.conv_in.weight", (2**30, 3, 3, 3), "encoder.conv_in.weight is of shape (1073741824, 3"),
    ("autoencoder", "encoder.conv_in.weight", (2**30, 0, 3, 3), "encoder.conv_in.weight is of shape (1073741824, 0"),
    ("autoencoder", "encoder.down.0.block.{}.conv1.weight", (16,), "100000 blocks a level, expected at most 100"),
    ("unet", "output_blocks.{}.0.in_layers.1.weight", (1,), "blocks a level, expected at most 100"),
])
def test_networks_that_no_file_can_hold(tiny_config, kind, name, shape, words):
    shapes = dict(expected_shapes(kind, getattr(tiny_config, kind)))
    shapes.update({name.format(i): shape for i in range(100_000 if "{" in name else 1)})
    refused(lambda: infer_section(kind, shapes, getattr(tiny_config, kind), "file"), "file: ", words)


def test_what_the_shapes_do_not_tell(convert, tiny_config, tmp_path):
    arrays = numbers("unet", tiny_config)
    refused(lambda: convert(made.torch_zip(arrays), config=None), "norm_groups 32: expected a divisor of 16",
            "--config")
    settings = tmp_path / "settings.yaml"
    settings.write_text("unet: {norm_groups: 8, head_channels: 8}")
    refused(lambda: convert(made.torch_zip(arrays), config=settings), "in_channels 2: expected 3", "--config")
    settings.write_text("unet: {norm_groups: 8, head_channels: 8, model_channels: 32}")
    refused(lambda: convert(made.torch_zip(arrays), config=settings), "unet.model_channels 16", "says 32")
    made_before = tmp_path / "autoencoder.safetensors"
    save_checkpoint(made_before, "autoencoder", {}, tiny_config, 0)
    assert convert(made.torch_zip(arrays), config=made_before).config == tiny_config


@pytest.mark.parametrize("change, words", [
    (lambda a: a.pop("out.0.bias"), ["1 missing, the first is out.0.bias"]),
    (lambda a: a.pop("middle_block.0.in_norm.mlp_shared.0.weight"), ["middle_block.0.in_norm.mlp_shared.0.weight is "]),
    (lambda a: [a.pop(n) for n in list(a) if n.startswith("middle_block.2")], ["18 missing, the first is middle"]),
    (lambda a: a.update({"label_emb.weight": np.zeros((3, 4), "f4")}), ["1 unexpected, the first is label_emb.weight"]),
    (lambda a: a.update({"out.2.bias": np.zeros(9, "f4")}), ["1 mis-shaped, the first is out.2.bias (9,) instead"]),
    (lambda a: a.update({"out.2.bias": np.zeros(4, "i8")}), ["1 not of floating point", "out.2.bias (int64)"]),
    (lambda a: a.update({"out.2.bias": np.full(4, np.nan, "f4")}), ["NaN or Inf in out.2.bias"]),
    (lambda a: a.update({"out.2.bias": np.full(4, np.inf, "f4")}), ["NaN or Inf in out.2.bias"]),
    (lambda a: a.update({"out.2.bias": np.full(4, 1e300)}), ["too large for float32 in out.2.bias"]),
])
def test_tensors_that_do_not_make_a_network(convert, tiny_config, tmp_path, change, words):
    arrays = numbers("unet", tiny_config)
    change(arrays)
    refused(lambda: convert(pickle.dumps(arrays)), *words)
    assert not (tmp_path / "converted.safetensors").exists()


def test_too_large_for_half_precision(convert, tiny_config):
    arrays = {**numbers("unet", tiny_config), "out.2.bias": np.full(4, 1e6, "f4")}
    assert same(convert(made.torch_zip(arrays)).tensors, arrays)
    refused(lambda: convert(made.torch_zip(arrays), half=True), "too large for float16 in out.2.bias")


# ---- the tool

def test_tool(tmp_path, config_file, diffusion_file):
    source, target = tmp_path / "model.ckpt", tmp_path / "unet.safetensors"
    source.write_bytes(diffusion_file[0])
    options = ("--kind", "unet", "--config", config_file)
    seen = run_main("convert", source, "--inspect", *options)
    assert seen.returncode == 0 and "model_channels 16" in seen.stdout, seen.stderr
    assert "float32   4                    state_dict.model.diffusion_model.out.2.bias" in seen.stdout
    assert not target.exists()
    done = run_main("convert", source, target, "--ema", "--half", *options)
    assert done.returncode == 0 and "step 9" in done.stdout, done.stderr
    found = load_checkpoint(target, "unet")
    assert found.step == 9 and found.provenance[0].file == "model.ckpt"
    again = run_main("convert", target, "--inspect")
    assert again.returncode == 0 and "made from model.ckpt (step 9" in again.stdout, again.stderr
    for arguments, words in (
        ((target, tmp_path / "b.safetensors"), "is a checkpoint of jiidm already"),
        ((source, source, *options), "expected a name that ends with .safetensors"),
        ((source, tmp_path / "none" / "b.safetensors", *options), "cannot be written"),
        ((source, tmp_path / "b.safetensors", "--config", tmp_path), "cannot be read as YAML"),
    ):
        done = run_main("convert", *arguments)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"model.ckpt", "unet.safetensors", "config.yaml"}


@pytest.mark.parametrize("arguments, words", [
    (("out.safetensors", "--baseline", "64x48", "--kind", "unet", "--config", "default.yaml", "--ema"),
     "--kind, --config, --ema: not with --baseline"),
    (("--inspect", "--baseline", "64x48"), "--inspect: not with --baseline"),
    (("out.safetensors", "--encoder", "E.pth", "--upsampling", 6), "--encoder, --upsampling: only with --baseline"),
    (("out.safetensors", "--upsampling", 0), "--upsampling: only with --baseline"),
])
def test_options_that_would_mean_nothing(arguments, words):
    done = run_main("convert", "G.pth", *arguments)
    assert done.returncode == 2 and words in done.stderr.splitlines()[-1], done.stderr


def test_output_may_not_be_the_input(tmp_path, tiny_config, config_file):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(made.safetensors(numbers("unet", tiny_config)))
    plan = plan_conversion(open_weights(path), config=config_file)
    refused(lambda: write_checkpoint(plan, path), "is the file to convert")
    assert len(list(list_tensors(open_weights(path)))) == len(plan.shapes)
