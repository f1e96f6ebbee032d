"""What a training shows and takes besides its losses: quarters, gradient norm, quality, TensorBoard, LPIPS, scale."""
import csv
import dataclasses

import numpy as np
import pytest
from helpers import refused
from test_perceptual import full_size_files
from test_training import CONFIG

from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import write_training_folder
from jiidm.training.plan import random_store
from jiidm.training.stages import Stages
from jiidm.training.unet import UNetTrainer

pytestmark = pytest.mark.slow


def changed(**settings):
    return dataclasses.replace(CONFIG, train_autoencoder=dataclasses.replace(CONFIG.train_autoencoder, **settings))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train"
    write_training_folder(folder, ((f"{seed}", *draw_landscape(seed, 64, 48)) for seed in range(7)))
    return folder


def rows_of(path):
    with open(path, newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def test_quarters_of_the_timesteps(tmp_path):
    trainer = UNetTrainer(CONFIG, random_store(CONFIG), None, tmp_path, []).build()
    latents, labels, _, noise, keep = trainer.batch(0)
    for t, of_each in (([0, 249, 249], [3, 0, 0, 0]), ([250, 500, 999], [0, 1, 1, 1])):
        logged = trainer.losses(0, (latents, labels, np.array(t), noise, keep)).logged
        mse, _, *quarters = (loss.item() for loss in logged)
        assert np.mean(quarters) == pytest.approx(mse, rel=1e-5)
        assert [quarter > 0 for quarter in quarters] == [count > 0 for count in of_each]


def test_a_run_with_everything_switched_on(data, tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard")
    files, _ = full_size_files(tmp_path)
    config = changed(perceptual_weight=0.5, perceptual_files=tuple(map(str, files)), scale=1.3)
    run = tmp_path / "run"
    Stages(config, data, run, tensorboard=True).autoencoder()
    row, = rows_of(run / "autoencoder.csv")
    assert row["perceptual"] > 0 and row["gradient_norm"] > 0
    quality, = rows_of(run / "autoencoder-quality.csv")
    assert quality["step"] == 6 and quality["psnr"] > 3 and -1 <= quality["ssim"] <= 1
    event, = (run / "tensorboard").iterdir()
    written = event.read_bytes()
    for name in (b"autoencoder/reconstruction", b"autoencoder/gradient_norm", b"autoencoder/samples"):
        assert name in written


def test_perceptual_weights_that_are_missing_are_told_at_once(data, tmp_path):
    refused(lambda: Stages(changed(perceptual_weight=1.0), data, tmp_path / "run"), "perceptual_files []")
    refused(lambda: Stages(changed(scale=0.5), data, tmp_path / "run"), "scale", "at least 1", "0.5")
    config = changed(perceptual_weight=1.0, perceptual_files=("vgg.pth", "lpips.pth"))
    refused(lambda: Stages(config, data, tmp_path / "run").autoencoder(), "vgg.pth", "no such file")
