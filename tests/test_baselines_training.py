"""Training and use of GauGAN and CLADE at a tiny size: losses, going on bit for bit, weights, pictures."""
import csv
import dataclasses
import re

import numpy as np
import pytest
from foreign_files import torch_zip
from helpers import refused, run_main
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from jiidm.baselines.config import (
    BaselineRun,
    DiscriminatorConfig,
    GeneratorConfig,
    GeneratorTrainingConfig,
)
from jiidm.baselines.convert import convert_published
from jiidm.baselines.inference import BaselineGenerator
from jiidm.baselines.networks import baseline_of, layout_of, load_baseline
from jiidm.baselines.training import BaselineTrainer, describe_training, train_baseline
from jiidm.checkpoint import load_tensors, save_tensors
from jiidm.config import ImageConfig, builtin_config, load_config
from jiidm.data.classes import CONTEST
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_training_folder
from jiidm.data.vocabulary import count_classes
from jiidm.generator import Generator, load
from jiidm.models.vgg import STAGES
from jiidm.system.runtime import jt
from jiidm.training import perceptual
from jiidm.training.perceptual import VGGLoss
from jiidm.training.state import read_state

pytestmark = pytest.mark.baselines

RUNS = {
    model: BaselineRun(
        ImageConfig(64, 48), GeneratorConfig(norm, 29, 2, 4, 4, 6, 2, 16), DiscriminatorConfig(4, 2, 2),
        GeneratorTrainingConfig(steps=6, batch=3, learning_rate=1e-3, discriminator_learning_rate=1e-3, ema=0.9,
                                calibrate=2, save_every=4, sheet_every=0),
    ) for model, norm in (("gaugan", "spade"), ("clade", "clade_icpe"))
}
VGG = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)  # torchvision's layers, of which 0, 5, 10, 19, 28 give features


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("landscapes") / "train"
    write_training_folder(path, ((f"{seed}", *draw_landscape(seed, 64, 48)) for seed in range(4)))
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """The folders of a whole run of each model, by name."""
    top = tmp_path_factory.mktemp("runs")
    for model, config in RUNS.items():
        train_baseline(config, data, top / model)
    return {model: top / model for model in RUNS}


def variables(run, step):
    tensors, _ = read_state(run / f"generator-state-{step:07d}.safetensors")
    return {name: tensor.read() for name, tensor in tensors.items()}


@pytest.mark.parametrize("model", RUNS)
def test_a_resumed_run_is_the_same_bit_for_bit(model, data, finished, tmp_path):
    """Two more steps from the state of step 4, with a sheet in between that changes nothing."""
    config = dataclasses.replace(RUNS[model], train_generator=dataclasses.replace(
        RUNS[model].train_generator, sheet_every=5))
    state = "generator-state-0000004.safetensors"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / state).write_bytes((finished[model] / state).read_bytes())
    train_baseline(config, data, tmp_path / "run", resume="auto")
    whole, resumed = variables(finished[model], 6), variables(tmp_path / "run", 6)
    assert whole.keys() == resumed.keys() and len(whole) > 100
    for name, value in whole.items():
        assert np.array_equal(value, resumed[name]), name
    before = variables(finished[model], 4)
    changed = [name for name in whole if name.startswith(("network/", "discriminator/"))
               and not np.array_equal(whole[name], before[name])]
    assert any("running_var" in name for name in changed) and any("weight_u" in name for name in changed)
    assert any(name.startswith("network/encoder.fc_mu") for name in changed)
    assert (tmp_path / "run" / "generator-0000005.jpg").exists()
    weights = [load_baseline(run / "weights" / f"{model}.safetensors").tensors for run in (finished[model],
                                                                                          tmp_path / "run")]
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())


def test_table_and_files(finished):
    with open(finished["gaugan"] / "generator.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["6"]
    assert float(rows[0]["discriminator"]) == pytest.approx(2, abs=0.3)  # scores are about zero at first
    assert float(rows[0]["feature_matching"]) > 0 and float(rows[0]["divergence"]) >= 0
    checkpoint = load_baseline(finished["gaugan"] / "weights" / "gaugan.safetensors")
    assert checkpoint.config == RUNS["gaugan"] and checkpoint.step == 6 and "4 photos" in checkpoint.note
    assert {"conv_img.weight", "layer1.0.weight_orig", "fc_var.bias"} <= checkpoint.tensors.keys()


def test_the_weights_say_how_often_they_saw_each_class(data, finished):
    labels = TrainingFolder(data).label_maps()
    expected = count_classes(labels, CONTEST)
    for model, run in finished.items():
        assert BaselineGenerator.from_checkpoint(run / "weights" / f"{model}.safetensors").vocabulary == expected


def test_the_networks_learn(data, tmp_path):
    """On one batch, over and over, the pictures come nearer to the photos, which only the discriminator has seen."""
    config = dataclasses.replace(RUNS["clade"], generator=dataclasses.replace(RUNS["clade"].generator, ngf=4))
    trainer = BaselineTrainer(config, TrainingFolder(data), tmp_path).build()
    photos, labels, positions, styles, noise = batch = trainer.batch(0)
    layout = layout_of(labels, positions, config.generator)

    def distance():
        with jt.no_grad():
            pictures = trainer.network(layout, jt.array(styles), jt.array(noise))[0].numpy()
        return np.abs(pictures - photos).mean()

    before = distance()
    for step in range(80):
        trainer.begin(step)
        _, gradients = trainer.compute(step, batch)
        trainer.update(step, 2e-3, gradients)
    assert distance() < 0.6 * before


def test_a_bad_step_changes_nothing(data, tmp_path):
    """A fault is found before weights, statistics or averages have changed."""
    trainer = BaselineTrainer(RUNS["gaugan"], TrainingFolder(data), tmp_path).build()
    trainer.begin(0)
    before = {name: value.numpy().copy() for name, value in trainer.state.variables.items()}
    photos, *rest = trainer.batch(0)
    losses, gradients = trainer.compute(0, (np.full_like(photos, np.nan), *rest))
    assert trainer.watch.fault(losses, gradients) is not None
    for name, value in trainer.state.variables.items():
        assert np.array_equal(value.numpy(), before[name]), name


def test_a_run_is_not_written_over(data, finished):
    refused(lambda: train_baseline(RUNS["clade"], data, finished["clade"]), finished["clade"], "--resume")


def test_resuming_with_other_rates(data, finished, tmp_path):
    """As after a loss that explodes; whatever else a step depends on must be the same."""
    state = "generator-state-0000004.safetensors"
    config = RUNS["clade"]
    run = tmp_path / "run"
    run.mkdir()
    (run / state).write_bytes((finished["clade"] / state).read_bytes())

    def resumed(**changes):
        train_baseline(dataclasses.replace(config, train_generator=dataclasses.replace(
            config.train_generator, **changes)), data, run, resume="auto")

    refused(lambda: resumed(feature_weight=1.0), state, "another configuration")
    resumed(learning_rate=2e-4, discriminator_learning_rate=3e-4)
    whole, other = variables(finished["clade"], 6), variables(run, 6)
    for network in ("network/generator.conv_img.weight", "discriminator/discriminator_0.model0.0.weight"):
        assert not np.array_equal(whole[network], other[network])


def test_sheets_show_the_held_out_photos(data, tmp_path, monkeypatch):
    held_out = tmp_path / "validation"
    write_training_folder(held_out, ((f"held{seed}", *draw_landscape(seed, 64, 48)) for seed in range(30, 32)))
    shown = []
    read = TrainingFolder.photo
    monkeypatch.setattr(TrainingFolder, "photo", lambda folder, name, *rest: (
        shown.append(name) if folder.path == held_out else None, read(folder, name, *rest))[1])
    config = dataclasses.replace(RUNS["gaugan"], train_generator=dataclasses.replace(
        RUNS["gaugan"].train_generator, steps=1))
    train_baseline(config, data, tmp_path / "run", held_out)
    assert set(shown) == {"held30", "held31"} and (tmp_path / "run" / "generator-0000001.jpg").exists()


def test_a_step_without_a_style(data, tmp_path):
    config = dataclasses.replace(RUNS["gaugan"], generator=dataclasses.replace(
        RUNS["gaugan"].generator, style_channels=0))
    trainer = BaselineTrainer(config, TrainingFolder(data), tmp_path).build()
    assert trainer.network.encoder is None
    before = trainer.network.generator.fc.weight.numpy().copy()
    trainer.begin(0)
    losses, gradients = trainer.compute(0, trainer.batch(0))
    assert losses["divergence"] == 0 and losses["feature_matching"] > 0
    assert trainer.watch.fault(losses, gradients) is None
    trainer.update(0, 1e-3, gradients)
    assert np.abs(trainer.network.generator.fc.weight.numpy() - before).max() > 1e-4


def test_a_step_with_vgg_19(data, tmp_path, monkeypatch):
    """With few channels in place of the published ones; what is weighed in moves the generator."""
    monkeypatch.setattr(perceptual, "WIDTHS", (4,) * 5)
    random, tensors, before = np.random.default_rng(0), {}, 3
    for number in VGG:
        tensors[f"features.{number}.weight"] = random.standard_normal((4, before, 3, 3)).astype(np.float32) / 4
        tensors[f"features.{number}.bias"], before = np.zeros(4, np.float32), 4
    (tmp_path / "vgg.pth").write_bytes(torch_zip(tensors))

    def gradient(weight):
        config = dataclasses.replace(RUNS["clade"], train_generator=dataclasses.replace(
            RUNS["clade"].train_generator, perceptual_weight=weight, perceptual_file=str(tmp_path / "vgg.pth")))
        trainer = BaselineTrainer(config, TrainingFolder(data), tmp_path).build()
        trainer.begin(0)
        losses, (own, _) = trainer.compute(0, trainer.batch(0))
        return losses["perceptual"], own.values[own.names.index("generator.conv_img.weight")].numpy()

    (without, plain), (once, first), (again, second) = (gradient(weight) for weight in (0.0, 10.0, 20.0))
    assert without == 0 and once > 0.01 and again == pytest.approx(once, rel=1e-5)
    assert np.abs(first - plain).max() > 0.01 * np.abs(plain).max()
    np.testing.assert_allclose(second - plain, 2 * (first - plain), atol=1e-4 * np.abs(second).max())


def test_description(data):
    lines = describe_training(RUNS["gaugan"], data, "cpu")
    assert "4 photos" in lines[0] and lines[1].startswith("gaugan: ") and lines[2].startswith("discriminator: ")
    assert re.fullmatch(r"time: \d+\.\d\d s a step, measured; \d+\.\d\d hours", lines[-1])


@pytest.mark.parametrize("section, change, words", [
    ("train_generator", {"steps": 0}, ("steps",)),
    ("train_generator", {"learning_rate": 0.0}, ("train_generator.learning_rate 0",)),
    ("train_generator", {"scale": 0.5}, ("train_generator.scale 0.5")),
    ("train_generator", {"loss_limit": 1.0}, ("loss_limit",)),
    ("train_generator", {"perceptual_weight": 10.0}, ("perceptual_file",)),
    ("generator", {"num_classes": 256}, ("num_classes 256", 255)),
    ("discriminator", {"layers": 7}, ("discriminator", "64x48")),
    ("discriminator", {"layers": 1}, ("layers",)),
])
def test_impossible_trainings(data, tmp_path, section, change, words):
    config = RUNS["gaugan"]
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    refused(lambda: train_baseline(config, data, tmp_path / "run"), *words)


@pytest.mark.parametrize("model", RUNS)
def test_configurations_that_come_with_the_package(model):
    config = load_config(builtin_config(model), BaselineRun)
    assert config.generator.model == model and (config.image.width, config.image.height) == (256, 192)


@pytest.mark.parametrize("stage, config, options, words", [
    ("gaugan", "clade", (), ("generator.norm clade", "expected gaugan")),
    ("clade", "gaugan", (), ("generator.norm spade makes it gaugan", "expected clade")),
    ("gaugan", "gaugan", ("--average",), ("--average", "for gaugan")),
    ("clade", "clade", ("--start-from", "unet.safetensors"), ("--start-from unet.safetensors", "for clade")),
])
def test_the_tool_refuses(tmp_path, stage, config, options, words):
    done = run_main("train", stage, "--config", config, "--data", tmp_path, "--run", tmp_path / "run", *options)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and all(word in done.stderr for word in words), (
        done.stderr)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------------- pictures

@pytest.fixture(scope="module", params=RUNS)
def generator(request, finished):
    return BaselineGenerator.from_checkpoint(finished[request.param] / "weights", "cpu")


def inputs(count):
    labels = [draw_landscape(10 + i, 64, 48)[1] for i in range(count)]
    return labels, [draw_landscape(20 + i, 80, 60)[0] for i in range(count)]


def test_pictures(generator):
    """One face for paths and arrays, one picture and many; the same seed and name give the same picture."""
    labels, photos = inputs(3)
    many = generator.infer(labels, photos, names=["a", "b", "c"])
    assert [picture.size for picture in many] == [(64, 48)] * 3
    alone = generator.infer(labels[1], photos[1], names=["b"])
    assert isinstance(alone, Image.Image) and np.array_equal(alone, many[1])
    assert not np.array_equal(alone, generator.infer(labels[1], photos[1], names=["b"], seed=1))
    means = [np.asarray(generator.infer(labels[1], photos[1], names=[name], seed=None)) for name in "bc"]
    assert np.array_equal(*means)  # without a seed nothing is drawn
    seen = []
    large = generator.infer(np.kron(labels[0], np.ones((2, 2), np.uint8)), photos[0], size="mask",
                            on_step=seen.append)
    assert large.size == (128, 96) and (seen[0].round, seen[0].done, seen[0].steps) == (0, 1, 1) and len(seen) == 1
    assert seen[0].preview().shape == (1, 48, 64, 3)
    assert "step 6" in generator.describe()


@pytest.mark.parametrize("setting, words", [
    ({"rounds": 2}, ("rounds 2", "one pass")), ({"rounds": True}, ("rounds True",)),
    ({"ensemble": [1, 2]}, ("ensemble [1, 2]", "one network")), ({"recipe": {"sampler": "dpmpp"}}, ("recipe",)),
    ({"recipe": {"steps": 20}}, ("recipe", "steps", "20")), ({"color_transfer": "reinhard"}, ("color_transfer",)),
    ({"recipe": {"final_color_transfer": "reinhard"}}, ("final_color_transfer",)),
    ({"style_labels": "map.png"}, ("style_labels 'map.png'", "no colour transfer")),
    ({"size": "large"}, ("size",)), ({"names": "a"}, ("names",)),
])
def test_what_a_baseline_refuses(generator, setting, words):
    labels, photos = inputs(1)
    refused(lambda: generator.infer(labels[0], photos[0], **setting), *words)


def test_what_means_nothing_but_is_off(generator):
    labels, photos = inputs(1)
    plain = generator.infer(labels[0], photos[0])
    off = generator.infer(labels[0], photos[0], rounds=1, ensemble=False, color_transfer=False, recipe={})
    assert np.array_equal(plain, off)


def test_wrong_checkpoints(finished, tmp_path):
    refused(lambda: BaselineGenerator.from_checkpoint(tmp_path, "cpu"), tmp_path, "0 checkpoints")
    path = finished["gaugan"] / "weights" / "gaugan.safetensors"
    arrays, metadata = load_tensors(path)
    for change, words in (({"conv_img.bias": np.full(3, np.nan, np.float32)}, ("conv_img.bias", "NaN")),
                          ({"strange": np.zeros(1, np.float32)}, ("unexpected", "strange"))):
        save_tensors(tmp_path / "x.safetensors", {**arrays, **change}, metadata)
        refused(lambda: baseline_of(load_baseline(tmp_path / "x.safetensors")), *words)
    save_tensors(tmp_path / "y.safetensors", arrays, {**metadata, "kind": "unet"})
    refused(lambda: load_baseline(tmp_path / "y.safetensors"), "holds the unet", "expected one of gaugan, clade")


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"reference": True}])
def test_options_that_are_for_iidm(finished, options):
    refused(lambda: load(finished["gaugan"] / "weights", "cpu", **options), "weights",
            "a baseline has", "leave precision and reference out")


def test_load_returns_what_the_file_is(finished):
    assert isinstance(load(finished["gaugan"] / "weights", "cpu"), BaselineGenerator)
    refused(lambda: Generator.from_checkpoint(finished["gaugan"] / "weights", "cpu"), "gaugan.safetensors",
            "a baseline", "jiidm.load")


def test_two_baselines_are_no_model(finished, tmp_path):
    files = [finished[model] / "weights" / f"{model}.safetensors" for model in RUNS]
    refused(lambda: load(files, "cpu"), "2 checkpoints", "gaugan.safetensors is a baseline",
            "give that file alone")


def test_the_tool_tells_what_the_file_is(finished):
    path = finished["clade"] / "weights" / "clade.safetensors"
    done = run_main("convert", path, "--inspect")
    assert done.returncode == 0 and f"{path}: clade, step 6; trained on 4 photos of train" in done.stdout, done.stderr
    assert done.stdout.endswith("; pictures of 64x48\n") and "conv_img.weight" in done.stdout


def test_the_tool_finds_no_weights_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "clade" / "weights").mkdir(parents=True)
    places = "--input_path", "test", "--img_path", "train", "--output_path", "out"
    for model in RUNS:
        done = run_main("infer", "--model", model, *places)
        assert done.returncode == 2 and f"runs/{model}/weights: no weights there; train the model" in done.stderr


# ------------------------------------------------------------------------------------------------ published weights

@pytest.mark.parametrize("model", RUNS)
def test_published_weights_give_the_same_pictures(model, finished, tmp_path):
    """Two PyTorch files with the published names, of which the second vector of a power iteration is left out."""
    source = finished[model] / "weights" / f"{model}.safetensors"
    arrays, _ = load_tensors(source)
    parts = {"G": {}, "E": {}}
    for name, value in arrays.items():
        if not name.endswith("weight_v"):
            parts["E" if name.startswith(("layer", "fc_")) else "G"][f"module.{name}"] = value.astype(np.float32)
    parts["G"]["module.head_0.norm_0.param_free_norm.num_batches_tracked"] = np.ones(1, np.float32)
    for tensors in parts.values():  # the files that lack it have the normalised weights instead
        for name in [name for name in tensors if name.endswith("weight_orig")]:
            tensors[name.removesuffix("_orig")] = tensors[name] / 7
    for part, tensors in parts.items():
        (tmp_path / f"{part}.pth").write_bytes(torch_zip(tensors))
    found = convert_published(tmp_path / "G.pth", tmp_path / "out.safetensors", tmp_path / "E.pth", 64, 48)
    assert found.generator == dataclasses.replace(
        RUNS[model].generator, spade_channels=4 if model == "gaugan" else GeneratorConfig().spade_channels)
    labels, photos = inputs(1)
    first, second = (np.asarray(BaselineGenerator.from_checkpoint(path, "cpu").infer(labels[0], photos[0]), int)
                     for path in (source, tmp_path / "out.safetensors"))
    assert np.abs(first - second).max() <= 1 and first.std() > 0
    refused(lambda: convert_published(tmp_path / "G.pth", tmp_path / "x.safetensors", None, 64, 48), "encoder")
    refused(lambda: convert_published(tmp_path / "E.pth", tmp_path / "x.safetensors"), "up_3.conv_1.weight_orig")
    empty = {**parts["G"], "module.up_3.conv_1.weight_orig": np.zeros((0, 4, 3, 3), np.float32)}
    (tmp_path / "empty.pth").write_bytes(torch_zip(empty))
    refused(lambda: convert_published(tmp_path / "empty.pth", tmp_path / "x.safetensors", tmp_path / "E.pth", 64, 48),
            "empty.pth", "up_3.conv_1.weight_orig is missing, empty")
    assert not (tmp_path / "x.safetensors").exists()


def test_features_of_vgg_19():
    """The distance against a computation in numpy; it teaches the made pictures only."""
    random = np.random.default_rng(0)
    layers, before = {}, 3
    for number in VGG:
        weight = random.standard_normal((4, before, 3, 3)) * (2 / (9 * before)) ** 0.5
        layers[number] = weight.astype(np.float32), 0.1 * random.standard_normal(4).astype(np.float32)
        before = 4
    real, made = (random.uniform(-1, 1, (2, 3, 34, 48)).astype(np.float32) for _ in range(2))

    def features(x):
        x = ((x + 1) / 2 - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape((0.229, 0.224, 0.225), (3, 1, 1))
        for number, (weight, bias) in layers.items():
            if number in (5, 10, 19, 28):
                rows, columns = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
                x = np.maximum.reduce([x[:, :, i:rows:2, j:columns:2] for i in (0, 1) for j in (0, 1)])
            windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), (2, 3))
            x = np.maximum(np.einsum("nihwyx,oiyx->nohw", windows, weight) + bias[:, None, None], 0)
            if number in (0, 5, 10, 19, 28):
                yield x

    expected = sum(weight * np.abs(a - b).mean() for weight, a, b in zip(
        (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), features(real), features(made), strict=True))
    a, b = jt.array(real), jt.array(made)
    loss = VGGLoss([[layers[number] for number in numbers] for numbers in STAGES[19]])(a, b)
    assert loss.item() == pytest.approx(expected, rel=1e-4) and expected > 0.1
    by_real, by_made = (g.numpy() for g in jt.grad(loss, [a, b]))
    assert not by_real.any() and by_made.any()


def test_vgg_19_of_another_shape_is_refused(tmp_path):
    (tmp_path / "vgg.pth").write_bytes(torch_zip({"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)}))
    refused(lambda: VGGLoss.from_file(tmp_path / "vgg.pth"), "vgg.pth", "features.0.weight", "VGG-19")
