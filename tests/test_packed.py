"""Packed latents: what the rounding costs, what is refused, and that the UNet trains on them without the photos."""
import dataclasses
import lzma
import shutil

import numpy as np
import pytest
from helpers import TINY, refused, run_main

from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.config import AutoencoderTrainingConfig, UNetTrainingConfig
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import BY_HAND, write_training_folder
from jiidm.data.latents import LatentStore
from jiidm.data.packed import PackedLatents, pack_latents
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.runtime import jt
from jiidm.training.stages import Stages

CONFIG = dataclasses.replace(
    TINY, train_autoencoder=AutoencoderTrainingConfig(crop=48),
    train_unet=UNetTrainingConfig(steps=2, batch=2, keep_at=(2,), by_hand_weight=2.0, sheet_every=0))
COUNT = 5


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with train/ and run/, whose autoencoder has random weights and whose latents are made."""
    top = tmp_path_factory.mktemp("packed")
    write_training_folder(top / "train", ((f"photo{i}", *draw_landscape(i, 64, 48)) for i in range(COUNT)))
    (top / "train" / BY_HAND).write_text("photo1\nphoto3\n")
    (top / "run").mkdir()
    jt.set_global_seed(5, False)
    save_checkpoint(top / "run" / "autoencoder.safetensors", "autoencoder", arrays_of(Autoencoder(CONFIG.autoencoder)),
                    CONFIG, 1, "float32")
    Stages(CONFIG, top / "train", top / "run", resume=True).latents()
    return top


def packed(top, path, *options):
    done = run_main("data", "pack", top / "train", top / "run" / "latents", path, *options)
    assert done.returncode == 0, done.stderr
    return PackedLatents(path), done.stdout


@pytest.mark.parametrize("step", [0.05, 0.4])
def test_latents_are_rounded_to_the_step_and_label_maps_are_exact(top, tmp_path, step):
    store = LatentStore(top / "run" / "latents")
    result, text = packed(top, tmp_path / "a", "--step", step)
    everything = np.arange(len(store))
    latents, labels = result.batch(everything, slice(None), None)
    assert len(result) == 2 * COUNT and (labels == store.labels).all() and latents.dtype == np.float32
    error = np.abs(latents - store.latents)
    size = step * np.sqrt(np.mean(np.square(store.latents, dtype=np.float64)))
    assert 0.4 * size < error.max() <= 0.5001 * size
    assert f"error {np.linalg.norm(error) / np.linalg.norm(store.latents):.3f} of" in text
    assert (result.whole(3)[0] == latents[[0, 4, 8]]).all()
    assert result.name(3, result.names) == "photo1 (mirrored)" and result.by_hand() == ["photo1", "photo3"]


def test_whole_photos_alone(top, tmp_path):
    result, text = packed(top, tmp_path / "a", "--whole")
    store = LatentStore(top / "run" / "latents")
    assert len(result) == COUNT and result.name(3, result.names) == "photo3" and "whole photos" in text
    assert (result.labels == store.labels[::2]).all() and (np.stack(list(result.label_maps())) == result.labels).all()


def test_some_photos_alone(top, tmp_path):
    store, names = LatentStore(top / "run" / "latents"), [f"photo{i}" for i in range(COUNT)]
    pack_latents(store, tmp_path / "a", names, ["photo1", "photo3"], 0.05, chosen=[0, 3])
    result = PackedLatents(tmp_path / "a")
    assert result.names == ["photo0", "photo3"] and result.by_hand() == ["photo3"] and len(result) == 4
    assert (result.labels == store.labels[[0, 1, 6, 7]]).all()
    assert np.allclose(result.batch(np.arange(4), slice(None), None)[0], store.latents[[0, 1, 6, 7]], atol=0.1)


def test_the_unet_trains_on_them_without_the_photos(top, tmp_path):
    packed(top, tmp_path / "light", "--whole")
    (tmp_path / "run").mkdir()
    shutil.copy(top / "run" / "autoencoder.safetensors", tmp_path / "run")
    stages = Stages(CONFIG, tmp_path / "light", tmp_path / "run", resume=True)
    stages.unet(), stages.export()
    assert stages.numbers_by_hand() == [1, 3] and (tmp_path / "run" / "weights" / "unet-0000002.safetensors").exists()
    for stage in (stages.autoencoder, stages.decoder, stages.latents):
        refused(stage, tmp_path / "light", "only the unet")


def test_latents_of_another_autoencoder_or_size_are_refused(top, tmp_path):
    packed(top, tmp_path / "light")
    other = dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, width=128))
    run = tmp_path / "run"
    shutil.copytree(top / "run", run)
    refused(Stages(other, tmp_path / "light", run, resume=True).unet, tmp_path / "light", "another autoencoder or size")
    save_checkpoint(run / "autoencoder.safetensors", "autoencoder", arrays_of(Autoencoder(CONFIG.autoencoder)), CONFIG,
                    1)
    refused(Stages(CONFIG, tmp_path / "light", run, resume=True).unet, "another autoencoder or size")


def test_what_is_not_whole_is_refused(top, tmp_path):
    packed(top, tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    for content in (whole[:-40], whole[: len(whole) // 2], b"", b"PK\3\4 not xz", lzma.compress(b"not arrays")):
        (tmp_path / "a").write_bytes(content)
        refused(lambda: PackedLatents(tmp_path / "a"), tmp_path / "a", "jiidm data pack")
    refused(lambda: PackedLatents(tmp_path / "missing"), tmp_path / "missing")


def test_a_step_that_is_too_fine_and_other_photos_are_refused(top, tmp_path):
    store = LatentStore(top / "run" / "latents")
    refused(lambda: pack_latents(store, tmp_path / "a", [], None, 0.001), "step 0.001", "eight bits")
    shutil.copytree(top / "train", tmp_path / "train")
    (tmp_path / "train" / "imgs" / "photo0.jpg").touch()
    done = run_main("data", "pack", tmp_path / "train", top / "run" / "latents", tmp_path / "a")
    assert done.returncode == 2 and "not the latents of the files" in done.stderr and not (tmp_path / "a").exists()
