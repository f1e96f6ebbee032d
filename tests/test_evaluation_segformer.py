"""The evaluator's SegFormer: layers against numpy, its size, and files of weights in its own and in public names."""
import json
import zlib

import numpy as np
import pytest
from foreign_files import hugging_face, safetensors, torch_legacy, torch_zip
from helpers import made_up, numbers, reference, reference_shapes, refused, relative_error

from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.config import Config
from jiidm.data.classes import load_table
from jiidm.data.labels import CLASSES
from jiidm.evaluation.features import predict
from jiidm.evaluation.public_segformer import segformer_name
from jiidm.evaluation.segformer import (
    Attention,
    DepthwiseConvolution,
    LayerNorm,
    MixFFN,
    Segformer,
    SegformerConfig,
    normalised,
    resize_bilinear,
)
from jiidm.evaluation.weights import (
    DEFAULT_SEGMENTER,
    Known,
    load_segmenter,
    save_known,
    save_segmenter,
)
from jiidm.system.runtime import jt

TINY = SegformerConfig(5, (8, 16), (1, 2), (1, 2), (2, 1), 2, 12, 48, 32)


@pytest.fixture(scope="module")
def tiny():
    network = made_up(Segformer(TINY), 3)
    network.decode_head.batch_norm.running_var.assign(jt.array(0.5 + np.arange(12, dtype=np.float32) / 12))
    return network


def random(*shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# -------------------------------------------------------------------------------------------------------------- layers

def layer_norm(tokens, module):
    centred = tokens - tokens.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps) * numbers(module.weight) + numbers(
        module.bias)


def linear(tokens, module):
    return tokens @ numbers(module.weight).T + numbers(module.bias)


def test_attention_with_spatial_reduction_is_that_of_the_paper():
    channels, heads, ratio, height, width = 6, 2, 2, 4, 6
    module, x = made_up(Attention(channels, heads, ratio), 1), random(2, channels, height, width)
    weight, bias = numbers(module.sr.weight), numbers(module.sr.bias)
    for sample, actual in zip(x.astype(np.float64), numbers(module(jt.array(x))), strict=True):
        tokens = sample.reshape(channels, -1).T
        reduced = np.array([[(weight * sample[:, i:i + 2, j:j + 2]).sum((1, 2, 3)) + bias
                             for j in range(0, width, 2)] for i in range(0, height, 2)]).reshape(-1, channels)
        reduced = layer_norm(reduced, module.layer_norm)
        q, k, v = linear(tokens, module.query), linear(reduced, module.key), linear(reduced, module.value)
        results = []
        for h in range(heads):
            part = slice(h * 3, h * 3 + 3)
            scores = np.exp(q[:, part] @ k[:, part].T / np.sqrt(3))
            results.append(scores / scores.sum(1, keepdims=True) @ v[:, part])
        expected = linear(np.concatenate(results, 1), module.dense).T.reshape(channels, height, width)
        assert relative_error(actual, expected) < 1e-5


def test_mix_ffn_is_that_of_the_paper():
    from scipy.special import erf

    module, x = made_up(MixFFN(4, 2), 2), random(1, 4, 5, 3)
    hidden = linear(x[0].reshape(4, -1).T.astype(np.float64), module.dense1).T.reshape(8, 5, 3)
    padded, weight = np.pad(hidden, ((0, 0), (1, 1), (1, 1))), numbers(module.dwconv.weight)
    mixed = np.array([[[(padded[c, i:i + 3, j:j + 3] * weight[c, 0]).sum() for j in range(3)] for i in range(5)]
                      for c in range(8)]) + numbers(module.dwconv.bias)[:, None, None]
    active = mixed * (1 + erf(mixed / np.sqrt(2))) / 2
    expected = linear(active.reshape(8, -1).T, module.dense2).T.reshape(1, 4, 5, 3)
    assert relative_error(module(jt.array(x)), expected) < 1e-5


def test_depthwise_convolution_has_the_gradients_of_its_sums():
    module, x = made_up(DepthwiseConvolution(2), 1), jt.array(random(1, 2, 4, 5))
    module.train()
    found = jt.grad((module(x) * jt.array(random(1, 2, 4, 5))).sum(), [x, module.weight])
    cotangent, padded = random(1, 2, 4, 5)[0], np.pad(random(1, 2, 4, 5)[0], ((0, 0), (1, 1), (1, 1)))
    weight = np.array([[[(padded[c, i:i + 4, j:j + 5] * cotangent[c]).sum() for j in range(3)] for i in range(3)]
                       for c in range(2)])
    assert relative_error(found[1], weight[:, None]) < 1e-5
    around = np.pad(cotangent, ((0, 0), (1, 1), (1, 1)))
    kernel = numbers(module.weight)[:, 0, ::-1, ::-1]
    expected = [[[(around[c, i:i + 3, j:j + 3] * kernel[c]).sum() for j in range(5)] for i in range(4)]
                for c in range(2)]
    assert relative_error(found[0], np.array(expected)[None]) < 1e-5


def test_layer_norm_goes_over_the_channels():
    module, x = made_up(LayerNorm(6, 1e-6), 1), random(2, 6, 3, 4)
    expected = layer_norm(x.transpose(0, 2, 3, 1).astype(np.float64), module).transpose(0, 3, 1, 2)
    assert relative_error(module(jt.array(x)), expected) < 1e-5


def test_bilinear_resizing_has_half_pixel_centres():
    x = np.float32([[[[0, 10, 20]]]])
    assert np.allclose(resize_bilinear(jt.array(x), 1, 6).numpy(), [0, 2.5, 7.5, 12.5, 17.5, 20], atol=1e-5)
    assert np.allclose(resize_bilinear(jt.array(x), 2, 1).numpy().ravel(), [10, 10])


# ------------------------------------------------------------------------------------------------------------- network

def test_b0_has_the_papers_size(tmp_path):
    network = Segformer(SegformerConfig(num_classes=29))
    trained = {name: p.numel() for name, p in network.named_parameters() if "running" not in name}
    encoder = sum(count for name, count in trained.items() if name.startswith("encoder"))
    assert round(encoder / 1e6, 1) == 3.3 and round(sum(trained.values()) / 1e6, 1) == 3.7
    # with the 150 classes of ADE20K: what the published B0 has
    assert sum(trained.values()) + 121 * 257 == 3_752_694
    save_segmenter(tmp_path / "b0.safetensors", arrays_of(network), network.config, 0)
    assert (tmp_path / "b0.safetensors").stat().st_size < 8e6


def test_shapes_of_logits_and_features(tiny):
    photos = np.random.default_rng(0).integers(0, 256, (2, 30, 50, 3), np.uint8)  # no multiples of the strides
    logits, features = tiny.with_features(jt.array(normalised(photos)))
    assert tuple(logits.shape) == (2, 5, 8, 13) and tuple(features.shape) == (2, 24)
    assert np.isfinite(logits.numpy()).all()


@pytest.mark.parametrize("change, words", [
    ({"heads": (1, 3)}, ("heads 3", "16")), ({"depths": (1,)}, ("one number a stage",)),
    ({"num_classes": 256}, ("num_classes 256", "255")), ({"width": 4}, ("4x32", "at least 8")),
    ({"sr_ratios": (0, 1)}, ("at least 1",)),
])
def test_impossible_configurations(change, words):
    refused(lambda: Segformer(SegformerConfig(**{**TINY.__dict__, **change})), *words)


# --------------------------------------------------------------------------------------------------------------- files

def authors(arrays):
    """The same for the authors' release."""
    found = {"decode_head.conv_seg.weight": np.zeros((2, 2, 1, 1), "f4")}
    for i, depth in enumerate(TINY.depths):
        ours, s = "encoder.{}", i + 1
        pairs = [(f"patch_embeddings.{i}.proj", f"patch_embed{s}.proj"),
                 (f"patch_embeddings.{i}.layer_norm", f"patch_embed{s}.norm"), (f"layer_norm.{i}", f"norm{s}")]
        for n in range(depth):
            block, theirs = f"block.{i}.{n}", f"block{s}.{n}"
            pairs += [(f"{block}.layer_norm_1", f"{theirs}.norm1"), (f"{block}.layer_norm_2", f"{theirs}.norm2"),
                      (f"{block}.attention.query", f"{theirs}.attn.q"), (f"{block}.attention.sr", f"{theirs}.attn.sr"),
                      (f"{block}.attention.layer_norm", f"{theirs}.attn.norm"),
                      (f"{block}.attention.dense", f"{theirs}.attn.proj"), (f"{block}.mlp.dense1", f"{theirs}.mlp.fc1"),
                      (f"{block}.mlp.dense2", f"{theirs}.mlp.fc2"),
                      (f"{block}.mlp.dwconv", f"{theirs}.mlp.dwconv.dwconv")]
            for kind in ("weight", "bias"):
                found[f"backbone.{theirs}.attn.kv.{kind}"] = np.concatenate(
                    [arrays[f"encoder.{block}.attention.{part}.{kind}"] for part in ("key", "value")])
        for our, their in pairs:
            for kind in ("weight", "bias"):
                if ours.format(f"{our}.{kind}") in arrays:
                    found[f"backbone.{their}.{kind}"] = arrays[ours.format(f"{our}.{kind}")]
        for kind in ("weight", "bias"):
            found[f"decode_head.linear_c{s}.proj.{kind}"] = arrays[f"decode_head.linear_c.{i}.{kind}"]
    found["decode_head.linear_fuse.conv.weight"] = arrays["decode_head.linear_fuse.weight"][:, :, None, None]
    for kind in ("weight", "bias", "running_mean", "running_var"):
        found[f"decode_head.linear_fuse.bn.{kind}"] = arrays[f"decode_head.batch_norm.{kind}"]
    found["decode_head.linear_pred.weight"] = arrays["decode_head.classifier.weight"][:, :, None, None]
    found["decode_head.linear_pred.bias"] = arrays["decode_head.classifier.bias"]
    return found


@pytest.mark.parametrize("written", [
    lambda arrays: torch_zip(hugging_face(arrays)),
    lambda arrays: safetensors(hugging_face(arrays)),
    lambda arrays: torch_legacy(authors(arrays)),
    lambda arrays: torch_zip(authors(arrays), wrap=lambda tensors: {"state_dict": tensors}),
], ids=["Hugging Face, zip", "Hugging Face, safetensors", "authors, older", "authors, state_dict"])
def test_public_weights(tiny, tmp_path, written):
    (tmp_path / "weights.bin").write_bytes(written(arrays_of(tiny)))
    loaded = load_segmenter(tmp_path / "weights.bin", {i: i + 3 for i in range(5)})
    assert loaded.network.config == SegformerConfig(**{**TINY.__dict__, "num_classes": 29, "width": 512, "height": 384})
    assert loaded.classes == loaded.known.classes == (3, 4, 5, 6, 7)
    for name, value in arrays_of(loaded.network).items():
        assert np.array_equal(value, arrays_of(tiny)[name]), name


def published(name, shape):
    """A made-up tensor of the public ADE20K weights."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.float32)
    if name.endswith("running_var"):
        return 0.5 + np.abs(values)
    if len(shape) > 1:
        return values / np.float32(np.sqrt(np.prod(shape[1:])))
    return name.endswith("weight") + np.float32(0.1) * values


def test_public_weights_for_ade20k_give_the_publishers_logits_and_our_classes(tmp_path, capsys):
    shapes = reference_shapes("segformer_ade20k")
    content = safetensors({name: published(name, shape) for name, shape in shapes.items()})
    (tmp_path / "model.safetensors").write_bytes(content)
    loaded = load_segmenter(tmp_path / "model.safetensors")
    assert "150 classes, taken as those of the table ade20k-train" in capsys.readouterr().err
    table = [c for c in load_table("ade20k-train").classes if not c.ignore]
    assert [CLASSES[c] for c in loaded.classes] == [c.becomes for c in table]
    assert CLASSES[loaded.classes[2]] == "sky" and {"sea", "waterfall", "path"} <= {CLASSES[c] for c in loaded.classes}
    x = np.random.RandomState(7).standard_normal((1, 3, 64, 96)).astype(np.float32)
    expected = reference("segformer_ade20k")["logits"][:, [c.number for c in table]]
    assert relative_error(loaded.network(jt.array(x)).numpy()[:, :, ::4, ::4], expected) < 1e-3


def test_a_table_of_classes_says_what_a_segformers_outputs_are(tiny, tmp_path):
    path, table = tmp_path / "weights.pth", tmp_path / "mine.yaml"
    path.write_bytes(torch_zip(hugging_face(arrays_of(tiny))))
    table.write_text("target: contest\nclasses:\n- {number: 0, name: ocean, becomes: sea}\n"
                     "- {number: 1, name: cat, ignore: true}\n- {number: 4, name: lake}\n"
                     "- {number: 2, name: bay, becomes: sea}\n")
    loaded = load_segmenter(path, table)
    assert [CLASSES[c] for c in loaded.classes] == ["sea", "sea", "lake"]
    photo = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    (labels,) = predict(loaded, [photo], [(20, 30)])
    assert labels.shape == (20, 30) and {CLASSES[c] for c in np.unique(labels)} <= {"sea", "lake"}
    table.write_text("classes:\n- {number: 0, name: cloud}\n")
    refused(lambda: load_segmenter(path, table), "mine.yaml", "cloud")


@pytest.mark.parametrize("public, ours", [
    ("segformer.encoder.patch_embeddings.0.proj.weight", "encoder.patch_embeddings.0.proj.weight"),
    ("backbone.patch_embed1.proj.weight", "encoder.patch_embeddings.0.proj.weight"),
    ("backbone.block4.1.attn.kv.bias", "encoder.block.3.1.attention.key+value.bias"),
    ("decode_head.linear_c.0.proj.weight", "decode_head.linear_c.0.weight"),
    ("decode_head.linear_c4.proj.weight", "decode_head.linear_c.3.weight"),
    ("backbone.layers.0.0.projection.weight", None),
])
def test_public_names(public, ours):
    assert segformer_name(public) == ours


def test_own_files(tiny, tmp_path):
    path = tmp_path / "own.safetensors"
    save_segmenter(path, arrays_of(tiny), TINY, 7, dtype="float32")
    loaded = load_segmenter(path)
    assert loaded.network.config == TINY and loaded.file == "own.safetensors" and len(loaded.sha256) == 64
    x = jt.array(random(1, 3, 32, 48))
    assert np.array_equal(loaded.network(x).numpy(), tiny(x).numpy())


def test_files_that_are_no_segmenter(tiny, tmp_path):
    arrays = arrays_of(tiny)

    def load(content, classes=5):
        (tmp_path / "x.pth").write_bytes(content)
        return load_segmenter(tmp_path / "x.pth", {i: i for i in range(classes)} if classes else None)

    refused(lambda: load_segmenter(tmp_path / "none.pth"), "none.pth", "no such file")
    refused(lambda: load(torch_zip({"features.0.weight": np.zeros((3, 3))})), "no SegFormer", "features.0.weight")
    some = hugging_face(arrays)
    del some["segformer.encoder.layer_norm.1.bias"]
    refused(lambda: load(torch_zip(some)), "missing: encoder.layer_norm.1.bias")
    more = {**hugging_face(arrays), "segformer.encoder.odd": np.zeros(3)}
    refused(lambda: load(torch_zip(more)), "unexpected", "odd")
    many = {**hugging_face(arrays), "decode_head.classifier.weight": np.zeros((149, 12, 1, 1))}
    refused(lambda: load(torch_zip(many), None), "149 classes", "29")
    refused(lambda: load(torch_zip(hugging_face(arrays)), None), "predicts 5 classes", "29", "--segmenter-classes")
    encoder = {name: value for name, value in hugging_face(arrays).items() if not name.startswith("decode")}
    refused(lambda: load(torch_zip(encoder)), "x.pth", "decode_head")
    broken = {**hugging_face(arrays), "decode_head.classifier.bias": np.full(5, np.nan)}
    refused(lambda: load(torch_zip(broken)), "NaN")
    negative = {**hugging_face(arrays), "decode_head.batch_norm.running_var": np.full(12, -1.0)}
    refused(lambda: load(torch_zip(negative)), "negative variance", "running_var")
    for shape in ((), (3,)):
        joint = {**authors(arrays), "backbone.block1.0.attn.kv.bias": np.zeros(shape)}
        refused(lambda joint=joint: load(torch_zip(joint)), "x.pth", f"kv.bias of shape {shape}", "even number of rows")
    save_checkpoint(tmp_path / "unet.safetensors", "unet", {"a": np.zeros(3)}, Config(), 1)
    refused(lambda: load_segmenter(tmp_path / "unet.safetensors"), "holds the unet", "expected the segmenter")
    bad = {**arrays, "decode_head.classifier.bias": np.full(5, 1e6)}
    refused(lambda: save_segmenter(tmp_path / "n.safetensors", bad, TINY, 1), "too large", "classifier.bias")


# ------------------------------------------------------------------------------------------------- what is known of it

def test_what_is_known_lies_beside_the_weights(tiny, tmp_path, capsys):
    path, known = tmp_path / "own.safetensors", Known((1, 3, 4), 72, 0.75, 0.5)
    save_segmenter(path, arrays_of(tiny), TINY, 7)
    assert load_segmenter(path).known is None
    save_known(path, known)
    assert load_segmenter(path).known == known
    save_known(path, Known((1, 3)))
    assert load_segmenter(path).known == Known((1, 3), None, None, None)
    assert capsys.readouterr().err == ""
    save_segmenter(path, arrays_of(tiny), TINY, 8)
    assert load_segmenter(path).known is None
    line, = capsys.readouterr().err.splitlines()
    assert "own.json" in line and "of other weights" in line


@pytest.mark.parametrize("change, words", [
    (lambda data: "{", "Expecting"), (lambda data: "[" * 100_000, "own.json"), (lambda data: "[]", "sha256"),
    (lambda data: b"\xff\xfe\x00", "decode"), (lambda data: {}, "sha256"), (lambda data: {**data, "odd": 1}, "no more"),
    (lambda data: {**data, "classes": [5]}, "0..4"), (lambda data: {**data, "classes": "sky"}, "0..4"),
    (lambda data: {**data, "photos": True}, "photos"), (lambda data: {**data, "mean_iou": 1.5}, "mean_iou"),
    (lambda data: {**data, "mask_accuracy": float("nan")}, "mask_accuracy"),
    (lambda data: {**data, "photos": None}, "all three"),
])
def test_broken_files_of_what_is_known(tiny, tmp_path, capsys, change, words):
    path = tmp_path / "own.safetensors"
    save_segmenter(path, arrays_of(tiny), TINY, 7)
    save_known(path, Known((1,), 3, 0.5, 0.25))
    changed = change(json.loads((tmp_path / "own.json").read_text()))
    changed = json.dumps(changed) if isinstance(changed, dict) else changed
    (tmp_path / "own.json").write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    assert load_segmenter(path).known is None
    line, = capsys.readouterr().err.splitlines()
    assert "own.json: left aside" in line and words in line, line


def test_the_packages_evaluator_knows_its_ceiling():
    found = load_segmenter()
    assert [CLASSES[c] for c in found.known.classes] == [
        "mountain", "sky", "water", "tree", "building", "grass", "road", "other"]
    card = (DEFAULT_SEGMENTER.parent / "README.md").read_text("utf-8")
    assert found.known.photos == 72
    assert f"mask accuracy {found.known.mask_accuracy:.3f}, mIoU {found.known.mean_iou:.3f}" in card
