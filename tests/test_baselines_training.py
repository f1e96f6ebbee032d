"""Training and use of GauGAN and CLADE at a tiny size: losses, going on bit for bit, weights, pictures."""
import csv
import dataclasses
import re

import numpy as np
import pytest
from foreign_files import torch_zip
from helpers import refused
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from jiidm.baselines.config import (
    BaselineRun,
    DiscriminatorConfig,
    GeneratorConfig,
    GeneratorTrainingConfig,
    load_baseline_run,
)
from jiidm.baselines.convert import convert_published
from jiidm.baselines.inference import BaselineGenerator
from jiidm.baselines.networks import baseline_of, layout_of, load_baseline
from jiidm.baselines.perceptual import VGGLoss
from jiidm.baselines.training import BaselineTrainer, describe_training, train_baseline
from jiidm.checkpoint import load_tensors, save_tensors
from jiidm.config import ImageConfig, builtin_config
from jiidm.data.folder import TrainingFolder, write_training_folder
from jiidm.data.synthetic import draw_landscape
from jiidm.files import InputError
from jiidm.runtime import jt
from jiidm.training.saved import read_state

RUNS = {
    model: BaselineRun(
        ImageConfig(64, 48), GeneratorConfig(norm, 29, 2, 4, 4, 6, 2, 16), DiscriminatorConfig(4, 2, 2),
        GeneratorTrainingConfig(steps=6, batch=3, learning_rate=1e-3, discriminator_learning_rate=1e-3, ema=0.9,
                                calibrate=2, save_every=4, sheet_every=0),
    ) for model, norm in (("gaugan", "spade"), ("clade", "clade_icpe"))
}


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


def test_the_networks_learn(data, tmp_path):
    """On one batch, over and over, the pictures come nearer to the photos, which only the discriminator has seen."""
    config = dataclasses.replace(RUNS["clade"], generator=dataclasses.replace(RUNS["clade"].generator, ngf=4))
    trainer = BaselineTrainer(config, TrainingFolder(data), tmp_path)
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
    trainer = BaselineTrainer(RUNS["gaugan"], TrainingFolder(data), tmp_path)
    trainer.begin(0)
    before = {name: value.numpy().copy() for name, value in trainer.state.variables.items()}
    photos, *rest = trainer.batch(0)
    losses, gradients = trainer.compute(0, (np.full_like(photos, np.nan), *rest))
    assert trainer.watch.fault(losses, gradients) is not None
    for name, value in trainer.state.variables.items():
        assert np.array_equal(value.numpy(), before[name]), name


def test_a_run_is_not_written_over(data, finished):
    refused(lambda: train_baseline(RUNS["clade"], data, finished["clade"]), finished["clade"], "--resume")


def test_description(data):
    lines = describe_training(RUNS["gaugan"], data, "cpu")
    assert "4 photos" in lines[0] and lines[1].startswith("gaugan: ") and lines[2].startswith("discriminator: ")
    seconds, hours = re.fullmatch(r"time: ([\d.]+) s a step, measured; ([\d.]+) hours", lines[-1]).groups()
    assert float(seconds) > 0 and float(hours) >= 0


@pytest.mark.parametrize("section, change, words", [
    ("train_generator", {"steps": 0}, ("steps",)),
    ("train_generator", {"learning_rate": 0.0}, ("train_generator.learning_rate 0",)),
    ("train_generator", {"scale": 0.5}, ("train_generator.scale 0.5",)),
    ("train_generator", {"loss_limit": 1.0}, ("loss_limit",)),
    ("train_generator", {"perceptual_weight": 10.0}, ("perceptual_file",)),
    ("generator", {"num_classes": 30}, ("num_classes 30", 29)),
    ("discriminator", {"layers": 7}, ("discriminator", "64x48")),
    ("discriminator", {"layers": 1}, ("layers",)),
])
def test_impossible_trainings(data, tmp_path, section, change, words):
    config = RUNS["gaugan"]
    config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **change)})
    refused(lambda: train_baseline(config, data, tmp_path / "run"), *words)


@pytest.mark.parametrize("model", RUNS)
def test_configurations_that_come_with_the_package(model):
    config = load_baseline_run(builtin_config(model))
    assert config.generator.model == model and (config.image.width, config.image.height) == (192, 144)


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
                            on_step=lambda *step: seen.append(step))
    assert large.size == (128, 96) and seen[0][:3] == (0, 1, 1) and len(seen) == 1
    assert "step 6" in generator.describe()


@pytest.mark.parametrize("setting, words", [
    ({"rounds": 2}, ("rounds 2", "one pass")), ({"rounds": True}, ("rounds True",)),
    ({"ensemble": [1, 2]}, ("ensemble [1, 2]", "one network")), ({"sampler": "dpmpp"}, ("sampler",)),
    ({"steps": 20}, ("steps 20",)), ({"color_transfer": "reinhard"}, ("color_transfer",)),
    ({"final_color_transfer": "reinhard"}, ("final_color_transfer",)),
    ({"size": "large"}, ("size",)), ({"names": "a"}, ("names",)),
])
def test_what_a_baseline_refuses(generator, setting, words):
    labels, photos = inputs(1)
    refused(lambda: generator.infer(labels[0], photos[0], **setting), *words)


def test_what_means_nothing_but_is_off(generator):
    labels, photos = inputs(1)
    plain = generator.infer(labels[0], photos[0])
    off = generator.infer(labels[0], photos[0], rounds=1, ensemble=False, color_transfer=False,
                          final_color_transfer=False)
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
    with pytest.raises(InputError, match="holds unet"):
        load_baseline(tmp_path / "y.safetensors")


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
    assert not (tmp_path / "x.safetensors").exists()


def test_features_of_vgg_19():
    """The distance against a computation in numpy; it teaches the made pictures only."""
    random = np.random.default_rng(0)
    numbers = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28)  # torchvision's, of which 0, 5, 10, 19, 28 give features
    layers, before = [], 3
    for number in numbers:
        weight = random.standard_normal((4, before, 3, 3)) * (2 / (9 * before)) ** 0.5
        layers.append((number, weight.astype(np.float32), 0.1 * random.standard_normal(4).astype(np.float32)))
        before = 4
    real, made = (random.uniform(-1, 1, (2, 3, 34, 48)).astype(np.float32) for _ in range(2))

    def features(x):
        x = ((x + 1) / 2 - np.reshape((0.485, 0.456, 0.406), (3, 1, 1))) / np.reshape((0.229, 0.224, 0.225), (3, 1, 1))
        for number, weight, bias in layers:
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
    loss = VGGLoss(layers)(a, b)
    assert loss.item() == pytest.approx(expected, rel=1e-4) and expected > 0.1
    by_real, by_made = (g.numpy() for g in jt.grad(loss, [a, b]))
    assert not by_real.any() and by_made.any()


def test_vgg_19_of_another_shape_is_refused(tmp_path):
    (tmp_path / "vgg.pth").write_bytes(torch_zip({"features.0.weight": np.zeros((4, 3, 3, 3), np.float32)}))
    refused(lambda: VGGLoss.from_file(tmp_path / "vgg.pth"), "vgg.pth", "features.0.weight", "VGG-19")
