"""`jiidm export` and jiidm_onnx: the numbers of Jittor, without Jittor."""
import dataclasses
import functools
import hashlib
import json
import subprocess
import sys

import helpers
import numpy as np
import pytest
from helpers import ROOT, TINY, relative_error, run_main, write_random_weights
from PIL import Image

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")
pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")

from jiidm.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from jiidm.config import DiffusionConfig, InferenceConfig  # noqa: E402
from jiidm.data import pictures as jiidm_pictures  # noqa: E402
from jiidm.data.labels import read_label_map  # noqa: E402
from jiidm.diffusion.guidance import Guidance, guided_denoiser  # noqa: E402
from jiidm.diffusion.samplers import SAMPLERS  # noqa: E402
from jiidm.diffusion.schedule import Schedule  # noqa: E402
from jiidm.inference import color_transfer as jiidm_colors  # noqa: E402
from jiidm.inference.plan import make_plan  # noqa: E402
from jiidm.inference.refinement import draw_noise  # noqa: E402
from jiidm_onnx import Generator, InputError, color_transfer, diffusion, pictures, recipe  # noqa: E402
from jiidm_onnx.networks import Networks  # noqa: E402

LABELS = ROOT / "examples" / "test" / "labels" / "mountain_lake.png"
STYLE = ROOT / "examples" / "train" / "imgs" / "evening_glow.jpg"
OTHER = ROOT / "examples" / "train" / "imgs" / "storm.jpg"
ROUND = {"guidance": 2.0, "respacing": "ddim50", "start": 20}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of an autoencoder and two UNets of the smallest networks."""
    folder = tmp_path_factory.mktemp("onnx") / "weights"
    config = dataclasses.replace(TINY, inference=InferenceConfig(rounds=[ROUND, ROUND]))
    write_random_weights(folder, config, [1, 2])
    return folder


@pytest.fixture(scope="module")
def exported(weights):
    """The folder that `jiidm export` makes of them."""
    folder = weights.parent / "exported"
    done = run_main("export", weights, "-o", folder)
    assert done.returncode == 0 and "unet-decode.onnx" in done.stdout, done.stderr
    return folder


@pytest.fixture(scope="module")
def generator(weights):
    from jiidm.generator import Generator as JittorGenerator

    return JittorGenerator.from_checkpoint(weights, "cpu")


@pytest.fixture(scope="module")
def networks(weights):
    """The autoencoder and the UNet, in N, C, H, W throughout."""
    from jiidm.generator import Generator as JittorGenerator

    return JittorGenerator.from_checkpoint(weights, "cpu", reference=True).networks()


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the folder, to be damaged, and a function that makes its manifest agree with a changed file."""
    for path in exported.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def agree(name):
        manifest = json.loads((tmp_path / "manifest.json").read_text())
        entry = manifest["networks"][name]
        entry["sha256"] = hashlib.sha256((tmp_path / entry["file"]).read_bytes()).hexdigest()
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))

    return tmp_path, agree


refused = functools.partial(helpers.refused, error=InputError)


@pytest.mark.parametrize(("images", "height", "width"), [(1, 48, 64), (2, 44, 60)])
def test_networks_give_the_numbers_of_jittor(exported, networks, images, height, width):
    from jiidm.data.latents import one_hot_batch
    from jiidm.kernels import plain_operators
    from jiidm.system.runtime import jt

    (autoencoder, unet), networks = networks, Networks(exported)
    rng, factor = np.random.default_rng(0), TINY.autoencoder.factor
    picture = np.float32(rng.uniform(-1, 1, (images, 3, height, width)))
    labels = rng.integers(0, 29, (images, height, width))
    sides = height // factor, width // factor
    with jt.no_grad():
        latents = autoencoder.encode(jt.array(picture)).numpy()
        decoded = autoencoder.decode(jt.array(latents)).numpy()
        with plain_operators():  # the parts of the UNet give N, C, H, W then, not blocks of channels
            maps = unet.condition(one_hot_batch(labels.astype(np.uint8), 29), *sides)
            features, modulations = unet.encode(jt.array(latents), unet.embed(jt.array([417]).int32()))
            predicted = unet.decode((features, modulations), maps, *sides)[:, :3].numpy()
        expected = [m for pair in maps for norm in pair for m in norm]
    assert relative_error(networks.run("encoder", picture=picture)["latents"], latents) < 1e-4
    assert relative_error(networks.run("decoder", latents=latents)["picture"], decoded) < 1e-4
    found = networks.run("unet-condition", labels=labels.astype(np.int32))
    assert len(found) == len(expected)
    assert max(relative_error(a, b) for a, b in zip(found.values(), expected, strict=True)) < 1e-4
    encoded = networks.run("unet-encode", latents=latents, timestep=np.array([417], np.int32))
    assert max(relative_error(encoded[f"feature_{i}"], f) for i, f in enumerate(features)) < 1e-4
    assert relative_error(networks.run("unet-decode", **encoded, **found)["prediction"], predicted) < 1e-4


def test_the_segmenter_gives_the_labels_of_jittor(exported):
    from jiidm.evaluation.segment import open_segmenter

    photo = pictures.read_photo(STYLE)
    expected = open_segmenter("small").segment(photo, (96, 128)).labels
    assert (Generator(exported).segment(photo, (96, 128)) == expected).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp"])
def test_a_guided_chain_of_20_steps_gives_the_latents_of_jittor(exported, networks, sampler):
    from jiidm.data.latents import one_hot_batch
    from jiidm.models.unet import Conditions
    from jiidm.system.runtime import jt

    labels = pictures.resize_labels(read_label_map(LABELS), 64, 48)[None]
    z, timesteps = draw_noise(0, "chain", 0, (1, 3, 12, 16)), tuple(range(780, -1, -41))[:20]
    schedule, conditions = Schedule(TINY.diffusion), Conditions(networks[1], one_hot_batch(labels, 29), 12, 16)
    denoise = guided_denoiser(conditions.predict, schedule, Guidance(2.0, 0.7))
    *_, (_, expected) = SAMPLERS[sampler](denoise, schedule, jt.array(z), timesteps)
    ours = Generator(exported)
    denoise = diffusion.guided_denoiser(ours._predictor("unet", labels), ours.schedule,
                                        diffusion.Guidance(2.0, 0.7))
    *_, found = diffusion.SAMPLERS[sampler](denoise, ours.schedule, z, timesteps)
    assert len(timesteps) == 20 and found.dtype == np.float32
    assert relative_error(found, expected) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {}, {"rounds": 1, "ensemble": False}, {"color_transfer": "histogram", "recipe": {"sampler": "dpmpp", "steps": 5}},
])
def test_pictures_are_those_of_jittor(exported, generator, settings):
    expected, found = (np.asarray(g.infer([LABELS, LABELS], [STYLE, OTHER], seed=3, **settings)[1], int)
                       for g in (generator, Generator(exported)))
    # the random decoder turns a code that is as near as another into other pixels
    difference = np.abs(found - expected)
    assert difference.mean() < 0.5 and (difference > 2).mean() < 0.02


def test_a_picture_does_not_depend_on_its_batch(exported):
    ours = Generator(exported)
    alone = ours.infer(LABELS, STYLE, rounds=1)
    batch = ours.infer([LABELS, LABELS], [OTHER, STYLE], rounds=1)
    assert np.array_equal(np.asarray(alone), np.asarray(batch[1]))


def test_the_mean_and_the_last_unet_differ(exported):
    ours = Generator(exported)
    mean, last, weighted = (np.asarray(ours.infer(LABELS, STYLE, 1, ensemble=e)) for e in (True, False, [2, 2]))
    assert np.array_equal(mean, weighted) and not np.array_equal(mean, last)
    refused(lambda: ours.infer(LABELS, STYLE, ensemble=[1, 3]), "[1, 3]", "--ensemble")


# ------------------------------------------------------------------------------------------------- the parts in numpy

@pytest.mark.parametrize("config", [
    DiffusionConfig(), DiffusionConfig(prediction="v", zero_terminal_snr=True), DiffusionConfig(timesteps=200)])
def test_plans_are_those_of_jiidm(config):
    theirs = Schedule(config)
    ours = diffusion.Schedule(theirs.alphas_cumprod.tolist(), config.prediction)
    base = {"rounds": [ROUND, {"guidance": 1.0, "respacing": "ddim20", "start": 19}], "color_transfer": "transport",
            "final_color_transfer": "reinhard", "final_color_share": 0.5, "sampler": "ddim", "steps": 20,
            "guidance_rescale": 0.3, "color_by_class": False, "canvas": []}
    from jiidm.config import Config, with_recipe

    whole = with_recipe(Config(diffusion=config), base)
    for keys in ({}, {"sampler": "dpmpp"}, {"sampler": "dpmpp", "steps": 7}, {"guidance_rescale": 0.0}):
        expected = make_plan(with_recipe(whole, keys).inference, theirs)
        found = recipe.make_plan(base, keys, ours)
        assert (found.final_color_transfer, found.final_color_share) == ("reinhard", 0.5)
        for a, b in zip(found.rounds, expected.rounds, strict=True):
            assert (a.sampler, a.start, a.timesteps, a.color_transfer) == \
                (b.sampler, b.start, b.timesteps, b.color_transfer)
            assert dataclasses.astuple(a.guidance) == dataclasses.astuple(b.guidance)


def test_noise_is_that_of_jiidm():
    assert np.array_equal(diffusion.draw_noise(7, "lake", 1, (3, 4, 5)), draw_noise(7, "lake", 1, (3, 4, 5)))


@pytest.mark.parametrize(("method", "largest", "mean"), [
    ("reinhard", 12, 0.2), ("histogram", 0, 0), ("transport", 1, 0)])
def test_color_transfers_are_those_of_jiidm(method, largest, mean):
    source, reference = (pictures.fit_photo(pictures.read_photo(p), 96, 72) for p in (STYLE, OTHER))
    for share in (1.0, 0.4):
        expected = jiidm_colors.transfer_color(source, reference, method, share).astype(int)
        difference = np.abs(color_transfer.transfer_color(source, reference, method, share) - expected)
        assert difference.max() <= largest and difference.mean() <= mean + 1e-3


@pytest.mark.parametrize(("width", "height"), [(100, 75), (700, 500), (64, 600)])
def test_photos_are_resized_as_by_jiidm(width, height):
    photo = pictures.read_photo(STYLE)
    expected = jiidm_pictures.fit_photo(jiidm_pictures.read_photo(STYLE), width, height).astype(int)
    assert np.abs(pictures.fit_photo(photo, width, height) - expected).max() <= 1


# ---------------------------------------------------------------------------------------------------------- the files

def test_every_file_says_what_it_is(exported, weights):
    model = onnx.load(exported / "unet-encode.onnx")
    about = {entry.key: entry.value for entry in model.metadata_props}
    assert about["format"] == "jiidm-onnx-1" and about["network"] == "unet-encode"
    assert json.loads(about["classes"])[1]["name"] == "sky" and json.loads(about["recipe"])["sampler"] == "ddim"
    assert json.loads(about["schedule"])["timesteps"] == 1000
    assert {w["file"] for w in json.loads(about["weights"])} == {path.name for path in weights.iterdir()}
    assert model.opset_import[0].version >= 17


def test_float16_halves_the_files_and_keeps_the_picture(weights, exported, tmp_path):
    run_main("export", weights, "-o", tmp_path, "--precision", "fp16")
    sizes = [(folder / "unet-decode.onnx").stat().st_size for folder in (tmp_path, exported)]
    assert sizes[0] < 0.6 * sizes[1]
    labels = pictures.resize_labels(read_label_map(LABELS), 64, 48)[None]
    z = draw_noise(0, "half", 0, (1, 3, 12, 16))
    half, whole = (Generator(folder)._predictor("unet", labels)(z, 300, True, False)[0]
                   for folder in (tmp_path, exported))
    assert 0 < relative_error(half, whole) < 2e-2


def test_weights_that_float16_holds_are_stored_so(weights, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in weights.glob("*-[01].safetensors"):
        c = load_checkpoint(path)
        save_checkpoint(folder / path.name, c.kind, c.tensors, c.config, c.step, "float16")
    run_main("export", folder, "-o", tmp_path / "onnx")
    tensors = onnx.load(tmp_path / "onnx" / "decoder.onnx").graph.initializer
    assert {t.data_type for t in tensors if t.name.endswith("conv1.weight")} == {onnx.TensorProto.FLOAT16}


def test_the_folder_draws_without_jiidm_and_its_packages(exported, tmp_path):
    blocked = ("jiidm", "jittor", "cv2", "skimage", "scipy", "yaml", "safetensors", "onnx", "tqdm")
    code = f"import sys, runpy; sys.modules.update(dict.fromkeys({blocked})); runpy.run_module('jiidm_onnx', " \
           "run_name='__main__')"

    def call(*arguments):
        return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=exported, capture_output=True,
                              text=True, env={"PYTHONDONTWRITEBYTECODE": "1"})

    done = call("draw", LABELS, STYLE, "-o", tmp_path / "a.png", "--rounds", 1, "--recipe",
                '{"sampler": "dpmpp", "steps": 2}')
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "a.png").size == Image.open(LABELS).size
    done = call("draw", LABELS, tmp_path / "none.jpg", "-o", tmp_path / "b.png")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "none.jpg" in done.stderr
    assert not (tmp_path / "b.png").exists() and done.stderr.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------- bad input

def test_a_damaged_file_is_refused(copied):
    folder, _ = copied
    path = folder / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(Generator(folder).check, path, "SHA-256")
    path.unlink()
    refused(Generator(folder).check, path, "cannot be read")


def test_a_file_that_keeps_tensors_elsewhere_is_never_loaded(copied):
    folder, agree = copied
    for hide in ("initializer", "attribute"):
        model = onnx.load(folder / "encoder.onnx")
        if hide == "initializer":
            tensor = model.graph.initializer[0]
        else:
            node = model.graph.node.add(op_type="Constant", output=["unused"])
            tensor = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(2, np.float32)))
        onnx.external_data_helper.set_external_data(tensor, "/etc/hostname")
        (folder / "decoder.onnx").write_bytes(model.SerializeToString())
        agree("decoder")
        refused(Generator(folder).check, "decoder.onnx", "tensors in other files")


def test_an_old_operator_set_and_other_files_are_refused(copied):
    folder, agree = copied
    model = onnx.load(folder / "encoder.onnx")
    model.opset_import[0].version = 15
    (folder / "encoder.onnx").write_bytes(model.SerializeToString())
    agree("encoder")
    refused(Generator(folder).check, "encoder.onnx", "operator set 15", "17")
    (folder / "encoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes())
    agree("encoder")
    refused(Generator(folder).check, "encoder.onnx", "another network", "picture")
    for data in (b"", b"\xff" * 40, b"\x3a\xff\x01"):
        (folder / "encoder.onnx").write_bytes(data)
        agree("encoder")
        refused(Generator(folder).check, "encoder.onnx")


@pytest.mark.parametrize(("key", "value"), [
    ("format", "other"), ("picture", {"width": 63, "height": 48}), ("latents", None), ("recipe", []),
    ("networks", {"encoder": {"file": "../encoder.onnx", "sha256": "", "inputs": [], "outputs": []}}),
    ("schedule", {"alphas_cumprod": [0.1, 0.9], "prediction": "epsilon"}),
])
def test_a_manifest_that_says_other_things_is_refused(copied, key, value):
    folder, _ = copied
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    refused(lambda: Generator(folder), folder / "manifest.json")


@pytest.mark.parametrize(("arguments", "words"), [
    ({"rounds": 5}, "rounds 5"), ({"rounds": [{"start": 60, "respacing": "ddim50"}]}, "start index 60"),
    ({"recipe": {"sampler": []}}, "sampler []"), ({"recipe": {"colour": 1}}, "colour"),
    ({"recipe": {"steps": 4}}, "steps 4"), ({"recipe": {"rounds": [3]}}, "a round"), ({"size": "big"}, "size 'big'"),
    ({"recipe": {"canvas": [128, 96]}}, "canvas"), ({"recipe": {"color_by_class": True}}, "color_by_class"),
    ({"rounds": [{"scale": 2.0}]}, "scale"),
    ({"color_transfer": "paint"}, "paint"), ({"recipe": {"guidance_from": 1000}}, "guidance_from"),
])
def test_settings_that_cannot_be_used_are_refused(exported, arguments, words):
    refused(lambda: Generator(exported).infer(LABELS, STYLE, **arguments), words)


def test_labels_and_photos_that_cannot_be_used_are_refused(exported, tmp_path):
    ours = Generator(exported)
    refused(lambda: ours.infer(np.full((4, 4), 29), STYLE), "label 29", "x=0, y=0")
    refused(lambda: ours.infer(STYLE, STYLE), STYLE, "JPEG")
    refused(lambda: ours.infer(LABELS, np.zeros((4, 4))), "uint8")
    (tmp_path / "cut.png").write_bytes(LABELS.read_bytes()[:100])
    refused(lambda: ours.infer(tmp_path / "cut.png", STYLE), "cut.png")
    refused(lambda: Generator(tmp_path), "manifest.json", "jiidm export")


def test_weights_of_another_architecture_are_not_exported(weights, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    for path in weights.glob("*-[01].safetensors"):
        c = load_checkpoint(path)
        if c.kind == "unet":
            del c.tensors["out.2.bias"]
        save_checkpoint(folder / path.name, c.kind, c.tensors, c.config, c.step)
    done = run_main("export", folder, "-o", tmp_path / "onnx")
    assert done.returncode == 2 and "another architecture" in done.stderr and done.stderr.count("\n") == 1
    assert not list((tmp_path / "onnx").iterdir())
