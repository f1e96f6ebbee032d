"""Training of both stages: losses in closed form, exact resuming, and the store of latents."""
import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import TINY
from PIL import Image

from jiidm import InputError
from jiidm.checkpoint import arrays_of, load_checkpoint, load_into, save_tensors
from jiidm.config import (
    AutoencoderTrainingConfig,
    RoundConfig,
    TrainingConfig,
    UNetTrainingConfig,
)
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_training_folder
from jiidm.data.latents import LatentStore, one_hot_batch
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.rng import batch_indices, rng_for
from jiidm.system.runtime import jt
from jiidm.training.adversarial import adaptive_weight, hinge_loss
from jiidm.training.autoencoder import AutoencoderTrainer, normalise_latents, transformed
from jiidm.training.ema import EMA
from jiidm.training.loop import learning_rate
from jiidm.training.losses import anchor_loss, coarse_loss, color_means, quantizer_loss
from jiidm.training.stages import Stages
from jiidm.training.state import CHECKSUM, read_state, state_path
from jiidm.training.unet import UNetTrainer

CONFIG = dataclasses.replace(
    TINY,
    train_autoencoder=AutoencoderTrainingConfig(
        steps=6, batch=2, crop=32, learning_rate=1e-3, warmup=2, decay_from=0.5, quantize_from=2, discriminator_start=3,
        discriminator_channels=8, discriminator_layers=1, coarse_weight=1.0, anchors=("", "red_green"),
        revive_codes_every=2, save_every=4, sheet_every=6,
    ),
    train_unet=UNetTrainingConfig(
        steps=6, batch=3, learning_rate=1e-3, warmup=2, keep_at=(3, 6), save_every=3, sheet_every=6,
    ),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train"
    write_training_folder(folder, ((f"{seed}", *draw_landscape(seed, 64, 48)) for seed in range(7)))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    stages = Stages(CONFIG, data, folder)
    stages.autoencoder(), stages.latents(), stages.unet()
    return folder


def test_a_run_leaves_checkpoints_tables_and_sheets(run):
    assert {p.name for p in run.iterdir()} == {
        "autoencoder.safetensors", "autoencoder-latest.safetensors", "autoencoder-state-0000004.safetensors",
        "autoencoder-state-0000006.safetensors", "autoencoder.csv", "autoencoder-quality.csv",
        "autoencoder-0000006.jpg", "latents",
        "unet-0000003.safetensors", "unet-0000006.safetensors", "unet-state-0000003.safetensors",
        "unet-state-0000006.safetensors", "unet.csv", "unet-0000006.jpg", ".claim",
    }
    assert load_checkpoint(run / "unet-0000003.safetensors", "unet").config == CONFIG
    columns, row = (run / "unet.csv").read_text().splitlines()
    assert columns == ("step,mse,bound,mse_quarter_1,mse_quarter_2,mse_quarter_3,mse_quarter_4,gradient_norm,"
                       "learning_rate,samples_per_second")
    assert row.startswith("6,")


def interrupted(trainer, last):
    """Makes a trainer stop, as if killed, before step `last`."""
    begin = trainer.begin

    def until(step):
        if step == last:
            raise KeyboardInterrupt
        begin(step)

    trainer.begin = until
    return trainer


def test_resumed_training_ends_with_the_very_same_weights(run, data, tmp_path, monkeypatch):
    import jiidm.training.stages as stages_module

    for stage, name, stop in (("autoencoder", "AutoencoderTrainer", 5), ("unet", "UNetTrainer", 4)):
        trainer = getattr(stages_module, name)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(stages_module, name, lambda *a, t=trainer, s=stop: interrupted(t(*a), s))
            getattr(Stages(CONFIG, data, tmp_path), stage)()
        with pytest.raises(InputError, match="--resume"):  # an interrupted stage is not started anew by mistake
            getattr(Stages(CONFIG, data, tmp_path), stage)()
        getattr(Stages(CONFIG, data, tmp_path, resume=True), stage)()
        if stage == "autoencoder":
            Stages(CONFIG, data, tmp_path).latents()
    for name in ("autoencoder", "unet-0000003", "unet-0000006"):
        whole, resumed = (load_checkpoint(f / f"{name}.safetensors").tensors for f in (run, tmp_path))
        for key, value in whole.items():
            assert (value == resumed[key]).all(), f"{name}: {key}"


def test_a_run_folder_is_not_overwritten_and_resumes_only_with_its_configuration(run, data, tmp_path):
    with pytest.raises(InputError, match="--resume"):
        Stages(CONFIG, data, run).autoencoder()
    with pytest.raises(InputError, match="no such run"):
        Stages(CONFIG, data, tmp_path / "absent", resume=True)
    longer = dataclasses.replace(CONFIG, train_unet=dataclasses.replace(CONFIG.train_unet, steps=9, keep_at=(9,)))
    with pytest.raises(InputError, match="another configuration"):
        Stages(longer, data, run, resume=True).unet()


@pytest.mark.parametrize("section, settings, words", [
    ("train_autoencoder", {"crop": 64}, "crop 64.*64x48"),
    ("train_autoencoder", {"crop": 30}, "multiple of 4"),
    ("train_autoencoder", {"crop": 8, "discriminator_layers": 2}, "crop 8.*at least 12"),
    ("train_autoencoder", {"discriminator_layers": 0}, "discriminator_layers.*from 1 to 16"),
    ("train_autoencoder", {"discriminator_channels": 6}, "discriminator_channels 6"),
    ("train_autoencoder", {"quantize_from": 6}, "quantize_from 6"),
    ("train_autoencoder", {"anchors": ("blue",)}, "blue"),
    ("train_unet", {"batch": 0}, "at least 1"),
    ("train_unet", {"keep_at": (3, 5)}, "keep_at"),
    ("train_unet", {"keep_last": 0}, "keep_last"),
    ("train_autoencoder", {"loss_limit": 0.5}, "loss_limit"),
    ("image", {"width": 66}, "width 66"),
    ("unet", {"in_channels": 4}, "in_channels 4"),
    ("unet", {"channel_mult": ()}, "channel_mult"),
    ("diffusion", {"timesteps": 1}, "timesteps 1"),
    ("inference", {"rounds": (RoundConfig(3.0, "ddim50", 50),)}, "start index 50"),
])
def test_an_impossible_configuration_is_refused_before_anything_starts(data, tmp_path, section, settings, words):
    config = dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **settings)})
    with pytest.raises(InputError, match=words):
        Stages(config, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("settings, words", [
    ({"norm_groups": 3}, "norm_groups 3"), ({"norm_groups": 0}, "norm_groups 0"), ({"head_channels": 24}, "24"),
])
def test_channels_that_do_not_divide_are_refused(settings, words):
    with pytest.raises(InputError, match=words):
        UNet(dataclasses.replace(CONFIG.unet, **settings))


def trainer_of(stage, data, run, **settings):
    """A trainer on the finished run's data, with weights that are nowhere zero."""
    section = f"train_{stage}"
    config = dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **settings)})
    folder = TrainingFolder(data)
    if stage == "autoencoder":
        trainer = AutoencoderTrainer(config, folder, run)
    else:
        trainer = UNetTrainer(config, LatentStore(run / "latents"), None, run, folder.names)
    trainer.build()
    random = np.random.default_rng(1)
    for parameter in trainer.network.parameters():
        if not parameter.numpy().any():
            parameter.assign(jt.array(random.normal(0, 0.05, parameter.shape).astype(np.float32)))
    return trainer


@pytest.mark.parametrize("stage, settings", [
    ("unet", {"checkpoint_blocks": True}), ("unet", {"micro_batch": 2}), ("autoencoder", {"micro_batch": 1}),
    ("unet", {"checkpoint_blocks": True, "micro_batch": 1}),
])
def test_less_memory_gives_the_same_losses_and_gradients(run, data, stage, settings):
    found = []
    for each in ({}, settings):
        trainer = trainer_of(stage, data, run, **each)
        losses, gradients = trainer.compute(5, trainer.batch(5))
        found.append((losses, [dict(zip(g.names, g.values, strict=True)) for g in gradients]))
    (losses, plain), (same, other) = found
    assert same == pytest.approx(losses, rel=1e-5, abs=1e-7)
    for first, second in zip(plain, other, strict=True):
        biggest = max(np.abs(value.numpy()).max() for value in first.values())
        for name, value in first.items():
            assert np.abs(value.numpy() - second[name].numpy()).max() < 1e-5 * biggest, name


def test_recomputed_blocks_train_as_kept_ones(run, data):
    weights = []
    for blocks in (False, True):
        trainer = trainer_of("unet", data, run, checkpoint_blocks=blocks)
        for step in range(3):
            _, gradients = trainer.compute(step, trainer.batch(step))
            trainer.update(step, 1e-3, gradients)
        weights.append(arrays_of(trainer.network))
        with jt.no_grad():
            assert all(np.isfinite(loss.item()) for loss in trainer.losses(9, trainer.batch(9)).logged)
    for name, value in weights[0].items():
        assert np.abs(value - weights[1][name]).max() < 1e-4, name


def test_latents_of_other_data_are_made_anew(run, data, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(data, tmp_path / "data")
    Image.fromarray(draw_labels(3)).save(tmp_path / "data" / "labels" / "0.png")
    (tmp_path / "run" / "unet-0000006.safetensors").unlink()
    stages = Stages(CONFIG, tmp_path / "data", tmp_path / "run", resume=True)
    with pytest.raises(InputError, match="latents stage again"):
        stages.unet()
    stages.latents()
    assert (LatentStore(tmp_path / "run" / "latents").labels[0] == draw_labels(3)[::4, ::4]).all()


def test_latents_come_with_their_mirror_images_and_are_normalised(run):
    store = LatentStore(run / "latents")
    assert store.latents.shape == (14, 3, 12, 16)
    assert (store.labels[1::2] == np.stack([draw_labels(s)[:, ::-1][::4, ::4] for s in range(7)])).all()
    assert (store.labels[::2] == np.stack([draw_labels(s)[::4, ::4] for s in range(7)])).all()
    plain = np.asarray(store.latents[::2])
    assert abs(plain.mean()) < 1e-3 and abs(plain.std() - 1) < 1e-2


def draw_labels(seed):
    return draw_landscape(seed, 64, 48)[1]


def test_normalising_latents_changes_no_picture():
    jt.set_global_seed(1)
    network = Autoencoder(CONFIG.autoencoder)
    network.quantize.embedding.weight.assign(jt.randn(64, 3))
    x = jt.array(np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32))
    with jt.no_grad():
        before, z, _, index = (v.numpy() for v in network(x))
        rows = np.random.default_rng(1).standard_normal((50, 3)) * 2.5 + 0.3
        normalise_latents(network, rows)
        after, scaled, _, same = (v.numpy() for v in network(x))
    assert (index == same).mean() > 0.999
    np.testing.assert_allclose(scaled, (z - rows.mean(0)[:, None, None]) / np.sqrt(rows.var(0).mean()), atol=1e-5)
    assert np.abs(before - after).mean() < 1e-3


def test_a_change_of_the_latents_is_seen_by_no_decoder():
    jt.set_global_seed(1)
    network = Autoencoder(CONFIG.autoencoder)
    x = jt.array(np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32))
    matrix, mean = np.array([[2.0, 0.5, 0], [0, 1, -1], [1, 0, 3]]), np.array([0.3, -0.2, 0.1])
    with jt.no_grad():
        z, before = network.encode(x).numpy(), network(x, quantize=False)[0].numpy()
        load_into(network, transformed(arrays_of(network), matrix, mean), "test")
        changed, after = network.encode(x).numpy(), network(x, quantize=False)[0].numpy()
    np.testing.assert_allclose(changed, np.einsum("ij,njhw->nihw", matrix, z - mean[:, None, None]), atol=1e-5)
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_colour_losses_on_hand_computed_cases():
    x = np.zeros((1, 3, 4, 4), np.float32)
    x[0, 0], x[0, 2, :2] = 0.6, 0.4  # red everywhere, blue in the upper half
    means = {k: v.numpy().ravel().tolist() for k, v in color_means(jt.array(x), 2).items()}
    np.testing.assert_allclose(means["brightness"], [1 / 3, 1 / 3, 0.2, 0.2], atol=1e-6)
    np.testing.assert_allclose(means["red_green"], [0.6] * 4, atol=1e-6)
    np.testing.assert_allclose(means["yellow_blue"], [-0.1, -0.1, 0.3, 0.3], atol=1e-6)
    flat = jt.zeros((1, 3, 4, 4))
    assert coarse_loss(jt.array(x), flat, 4).item() == pytest.approx(0.8 / 3 + 0.6 + 0.1, abs=1e-6)
    z = jt.zeros((1, 2, 2, 2))
    assert anchor_loss(jt.array(x), z, ("", "red_green"), 2).item() == pytest.approx(2.4, abs=1e-5)


def test_losses_on_hand_computed_cases():
    z, codes = jt.array([[[[1.0, 3.0]]]]), jt.array([[[[0.0, 1.0]]]])
    assert quantizer_loss(z, codes).item() == pytest.approx(2.5 * 1.25)
    by_z, by_codes = jt.grad(quantizer_loss(z, codes), [z, codes])
    np.testing.assert_allclose(by_z.numpy().ravel(), [1, 2])
    np.testing.assert_allclose(by_codes.numpy().ravel(), [-0.25, -0.5])
    assert hinge_loss(jt.array([2.0, 0.5]), jt.array([-3.0, 0.0])).item() == pytest.approx(0.5 * (0.25 + 0.5))


def test_the_adversarys_weight_is_the_ratio_of_two_norms():
    first, second = jt.array(np.full((2, 2, 1, 1), 3, np.float32)), jt.array(np.full((2, 2, 1, 1), 2, np.float32))
    assert adaptive_weight(first, second) == pytest.approx(6 / (4 + 1e-4))
    assert adaptive_weight(first, 0 * second) == 1e4


def test_ema_follows_its_formula_and_leaves_the_weights_trainable():
    network = jt.nn.Linear(1, 1, bias=False)
    network.weight.assign(jt.array([[0.0]]))
    ema, expected = EMA(network, 0.9), 0.0
    for step in range(30):
        network.weight.assign(jt.array([[float(step)]]))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert ema.arrays()["weight"].item() == pytest.approx(expected, rel=1e-5)
    assert jt.grad((network.weight * 3).sum(), network.weight).item() == 3
    ema.swap()
    assert network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_batches_visit_every_item_once_an_epoch():
    drawn = np.concatenate([batch_indices(5, step, 4, 10) for step in range(10)])
    for epoch in range(4):
        assert sorted(drawn[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert (drawn[:10] != drawn[10:20]).any()


@pytest.mark.parametrize("weight, times", [(1.0, (2, 2)), (3.0, (6, 6)), (2.5, (5, 5)), (0.5, (1, 1)), (1.5, (3, 3))])
def test_weighted_items_are_drawn_that_much_more_often(weight, times):
    weighted = [1, 2, 5, 7]
    length = 6 + round(4 * weight)
    drawn = np.concatenate([batch_indices(5, step, 2, 10, weighted, weight) for step in range(length)])  # two epochs
    counts = np.bincount(drawn, minlength=10)
    assert counts[[0, 3, 4, 6, 8, 9]].tolist() == [2] * 6 and counts[weighted].sum() == 2 * round(4 * weight)
    assert times[0] - 1 <= counts[weighted].min() and counts[weighted].max() <= times[1] + 1
    plain = np.concatenate([batch_indices(5, step, 2, 10) for step in range(length)])
    assert (drawn == plain).all() == (weight == 1)


def test_photos_labelled_by_hand_are_drawn_more_often_and_a_run_resumes(run, data, tmp_path):
    folder = tmp_path / "train"
    shutil.copytree(data, folder)
    config = dataclasses.replace(CONFIG, train_unet=dataclasses.replace(CONFIG.train_unet, by_hand_weight=4.0))
    with pytest.raises(InputError, match=r"by_hand.txt: missing; train_unet.by_hand_weight 4"):
        Stages(config, folder, tmp_path / "run").numbers_by_hand()
    (folder / "by_hand.txt").write_text("2\n5\n")
    stages = Stages(config, folder, tmp_path / "run")
    numbers = stages.numbers_by_hand()
    assert numbers == [2, 5]
    trainer = UNetTrainer(config, LatentStore(run / "latents"), None, tmp_path / "run", [], by_hand=numbers)
    drawn = np.concatenate([trainer.indices(step) for step in range(26)])  # 26 * 3 = 3 epochs of 10 + 4 * 4 entries
    assert np.bincount(drawn, minlength=14).tolist() == [12 if entry in (4, 5, 10, 11) else 3 for entry in range(14)]
    again = UNetTrainer(config, LatentStore(run / "latents"), None, tmp_path / "run", [], by_hand=numbers)
    assert (again.indices(17) == drawn[51:54]).all()  # a function of the step alone


def test_a_state_from_before_a_setting_has_its_default(run, data, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    path = state_path(tmp_path, "unet", 3)
    tensors, metadata = read_state(path)
    config = json.loads(metadata["config"])
    assert config["train_unet"].pop("by_hand_weight") == 1.0
    metadata = {**metadata, "config": json.dumps(config)}
    save_tensors(path, {name: tensor.read() for name, tensor in tensors.items()}, metadata, checksum=CHECKSUM)
    Stages(CONFIG, data, tmp_path, resume="3").unet()
    one, other = (load_checkpoint(f / "unet-0000006.safetensors").tensors for f in (run, tmp_path))
    assert all((one[name] == other[name]).all() for name in one)
    other = dataclasses.replace(CONFIG, train_unet=dataclasses.replace(CONFIG.train_unet, mask_drop=0.1))
    with pytest.raises(InputError, match="another configuration"):
        Stages(other, data, tmp_path, resume="3").unet()


def test_learning_rate_warms_up_stays_and_falls():
    training = TrainingConfig(steps=100, learning_rate=1.0, warmup=10, decay_from=0.5)
    rates = [learning_rate(training, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10:51] == [1.0] * 41
    assert rates[-1] == pytest.approx(0.01, abs=2e-3)
    assert all(a >= b for a, b in zip(rates[50:], rates[51:], strict=False))


def test_no_class_is_an_all_zero_column_and_a_strange_class_is_refused():
    hot = one_hot_batch(np.array([[[0, 255, 28]]], np.uint8), 29).numpy()
    assert hot.shape == (1, 29, 1, 3) and hot.sum(1).ravel().tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="30"):
        one_hot_batch(np.array([[[30]]], np.uint8), 29)


def test_random_streams_are_told_apart_by_every_part_of_their_name():
    streams = [(1, 2, "crops"), (1, 2, "noise"), (1, 12, "crops"), (12, "crops"), (1, 2, "crops", 3), (2, 2, "crops")]
    drawn = {rng_for(*names).integers(2**62) for names in streams}
    assert len(drawn) == len(streams) and rng_for(*streams[0]).integers(2**62) in drawn
    assert rng_for(np.int64(1), np.int64(2), "crops").integers(2**62) in drawn
