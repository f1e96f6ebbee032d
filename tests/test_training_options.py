"""How a training begins and what it is fed with: other weights, random scale, photos encoded on the fly, bf16."""
import dataclasses

import numpy as np
import pytest
import yaml
from helpers import refused, relative_error, run_main, run_tool
from test_training import CONFIG, interrupted

from jiidm.checkpoint import arrays_of, load_checkpoint, load_into, save_checkpoint, source_of
from jiidm.config import to_dict
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_training_folder
from jiidm.data.labels import fit_labels
from jiidm.data.latents import LatentStore, PhotoLatents, encoded
from jiidm.data.pictures import fit_photo
from jiidm.data.views import draw_views
from jiidm.kernels.convolution import rounded_convolution
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.runtime import jt
from jiidm.training.stages import Stages
from jiidm.training.unet import UNetTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "train"
    write_training_folder(folder, ((f"{seed}", *draw_landscape(seed, 80, 60)) for seed in range(5)))
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """A finished run on the latents of an autoencoder that has learnt nothing."""
    folder = tmp_path_factory.mktemp("run")
    jt.set_global_seed(1)
    arrays = arrays_of(Autoencoder(CONFIG.autoencoder))
    save_checkpoint(folder / "autoencoder.safetensors", "autoencoder", arrays, CONFIG, 1, "float32")
    stages = Stages(CONFIG, data, folder)
    stages.latents(), stages.unet()
    return folder


def fine_tuned(run, data, folder, resume=None):
    """Stages in a new folder with the finished run's autoencoder and latents; its UNet starts from the run's last."""
    if not folder.exists():
        folder.mkdir()
        for name in ("autoencoder.safetensors", "latents"):
            (folder / name).symlink_to(run / name)
    return Stages(CONFIG, data, folder, resume=resume, start_from=run / "unet-0000006.safetensors")


def test_a_unet_starts_from_a_checkpoints_weights_and_says_so(run, data, tmp_path, monkeypatch):
    start = load_checkpoint(run / "unet-0000006.safetensors")
    trainer = UNetTrainer(CONFIG, LatentStore(run / "latents"), None, tmp_path, [], start_from=start.path).build()
    trainer.initialize()
    for name, value in start.tensors.items():
        assert (trainer.ema.arrays()[name] == value).all() and (arrays_of(trainer.network)[name] == value).all()
    whole = fine_tuned(run, data, tmp_path / "whole")
    whole.unet(), whole.export()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jiidm.training.stages.UNetTrainer", lambda *a: interrupted(UNetTrainer(*a), 4))
        fine_tuned(run, data, tmp_path / "parts").unet()
    state, = (tmp_path / "parts").glob("unet-state-*")
    assert state.name == "unet-state-0000003.safetensors"
    stages = fine_tuned(run, data, tmp_path / "parts", resume=True)
    stages.start_from = tmp_path / "gone.safetensors"  # a state has its own weights
    stages.unet()
    for path in (tmp_path / "whole/unet-0000006.safetensors", tmp_path / "parts/unet-0000006.safetensors",
                 tmp_path / "whole/weights/unet-0000006.safetensors"):
        assert load_checkpoint(path).provenance == (source_of(start.path, 6),)
        assert "fine-tuned; made from unet-0000006.safetensors (step 6" in load_checkpoint(path).describe()
    one, other, first = (load_checkpoint(f / "unet-0000006.safetensors").tensors for f in
                         (tmp_path / "whole", tmp_path / "parts", run))
    assert all((one[name] == other[name]).all() for name in one)
    assert any((one[name] != first[name]).any() for name in one)


def test_a_start_that_does_not_fit_is_told_at_once(run, data, tmp_path):
    other = dataclasses.replace(CONFIG, unet=dataclasses.replace(CONFIG.unet, head_channels=8))
    refused(lambda: Stages(other, data, tmp_path / "run", start_from=run / "unet-0000006.safetensors"),
            "unet-0000006.safetensors", "head_channels 16 instead of 8")
    refused(lambda: Stages(CONFIG, data, tmp_path / "run", start_from=run / "autoencoder.safetensors"),
            "holds the autoencoder, expected the unet")
    refused(lambda: Stages(CONFIG, data, tmp_path / "run", start_from=tmp_path / "gone"), "gone", "no such checkpoint")
    assert not (tmp_path / "run").exists()


def test_the_tool_starts_from_a_checkpoint(run, data, tmp_path):
    fine_tuned(run, data, tmp_path / "run")
    (tmp_path / "fine.yaml").write_text(yaml.safe_dump(to_dict(CONFIG)))
    given = ("--config", tmp_path / "fine.yaml", "--data", data, "--run", tmp_path / "run", "--device", "cpu",
             "--start-from", run / "unet-0000006.safetensors")
    done = run_main("train", "latents", *given)
    assert done.returncode == 2 and "is for the UNet" in done.stderr
    done = run_tool("train", "unet", *given)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(tmp_path / "run/unet-0000003.safetensors").note == "fine-tuned"


def changed(**settings):
    return dataclasses.replace(CONFIG, train_unet=dataclasses.replace(CONFIG.train_unet, **settings))


def test_further_views_in_the_store_are_enlarged_parts_each_with_its_mirror_image(run, data, tmp_path):
    (tmp_path / "autoencoder.safetensors").symlink_to(run / "autoencoder.safetensors")
    config = changed(views=3, scale=1.5)
    Stages(config, data, tmp_path).latents()
    plain, store = LatentStore(run / "latents"), LatentStore(tmp_path / "latents")
    assert store.latents.shape == (30, 3, 12, 16) and store.labels.shape == (30, 12, 16)
    for i in (0, 1):  # the whole photos as in a plain store
        assert (store.labels[i::6] == plain.labels[i::2]).all() and (store.latents[i::6] == plain.latents[i::2]).all()
    folder = TrainingFolder(data)
    for number, name in enumerate(folder.names):
        for view in (1, 2):
            random = np.random.Generator(np.random.PCG64([CONFIG.seed, number, 6]))
            width, height, top, left, *_ = draw_views(random, 2, 64, 48, 48, 64, 1.5)[view - 1]
            labels = fit_labels(folder.labels(name, 29), width, height)[top:top + 48, left:left + 64]
            assert 64 <= width <= 96 and (store.labels[6 * number + 2 * view] == labels[::4, ::4]).all()
            assert (store.labels[6 * number + 2 * view + 1] == labels[:, ::-1][::4, ::4]).all()
            photo = fit_photo(folder.photo(name), width, height)[top:top + 48, left:left + 64]
            z = encoded(network_of(run), np.ascontiguousarray(photo)[None]).numpy()[0]
            assert np.abs(store.latents[6 * number + 2 * view] - z).max() < 1e-4
    refused(Stages(CONFIG, data, tmp_path, resume=True).unet, "views", "latents stage again")
    trainer = UNetTrainer(config, store, None, tmp_path, folder.names).build()
    assert (trainer.masks == plain.labels[::2][np.linspace(0, 4, 8).astype(int)]).all()
    assert [store.name(i, folder.names) for i in (0, 1, 5, 6, 10)] == [
        "0", "0 (mirrored)", "0 (view 2, mirrored)", "1", "1 (view 2)"]


def network_of(run):
    network = Autoencoder(CONFIG.autoencoder)
    load_into(network, load_checkpoint(run / "autoencoder.safetensors").tensors, "test")
    return network


def on_the_fly(run, data, folder, config, resume=None):
    folder.mkdir(exist_ok=True)
    if not resume:
        (folder / "autoencoder.safetensors").symlink_to(run / "autoencoder.safetensors")
    return Stages(config, data, folder, resume=resume)


def test_training_without_a_store_resumes_with_the_very_same_weights(run, data, tmp_path, monkeypatch):
    config = changed(encode_on_the_fly=True, scale=1.3, micro_batch=2)
    whole = on_the_fly(run, data, tmp_path / "whole", config)
    whole.latents(), whole.unet()
    assert not (tmp_path / "whole/latents").exists() and (tmp_path / "whole/unet-0000006.jpg").exists()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("jiidm.training.stages.UNetTrainer", lambda *a: interrupted(UNetTrainer(*a), 4))
        on_the_fly(run, data, tmp_path / "parts", config).unet()
    on_the_fly(run, data, tmp_path / "parts", config, resume=True).unet()
    one, other = (load_checkpoint(tmp_path / f / "unet-0000006.safetensors").tensors for f in ("whole", "parts"))
    assert all((one[name] == other[name]).all() for name in one)
    refused(on_the_fly(run, data, tmp_path / "parts", changed(encode_on_the_fly=True), resume="6").unet,
            "another configuration")


def test_photos_encoded_on_the_fly_are_what_a_store_holds(run, data, monkeypatch):
    config, names = changed(encode_on_the_fly=True), TrainingFolder(data).names
    store, photos = LatentStore(run / "latents"), PhotoLatents(network_of(run), TrainingFolder(data), config)
    assert len(photos) == 5 and photos.shape == store.shape and photos.name(3, names) == "3"
    for one, other in zip(store.whole(8), photos.whole(8), strict=True):
        assert np.abs(one.astype(float) - other).max() < 1e-4
    trainer = UNetTrainer(config, photos, None, run, names).build()
    mirrored = []
    for step in range(3):
        rows, labels, t, noise, keep = trainer.batch(step)
        latents = photos.latents_of(rows).numpy()
        for i, number in enumerate(trainer.indices(step)):
            side = int((labels[i] != store.labels[2 * number]).any())
            mirrored.append(side)
            assert (labels[i] == store.labels[2 * number + side]).all()
            assert np.abs(latents[i] - store.latents[2 * number + side]).max() < 1e-4
        # the same draws whatever part of the batch this process computes
        monkeypatch.setattr("jiidm.training.unet.shard", lambda size: slice(1, 3))
        for part, all_of_it in zip(trainer.batch(step), (rows, labels, t, noise, keep), strict=True):
            assert (part == all_of_it[1:3]).all()
        monkeypatch.undo()
    assert 0 < sum(mirrored) < len(mirrored)
    losses, gradients = trainer.compute(0, trainer.batch(0))
    stored = UNetTrainer(CONFIG, store, None, run, names).build()
    rows, *rest = trainer.batch(0)
    same, others = stored.compute(0, (photos.latents_of(rows).numpy(), *rest))
    assert losses == pytest.approx(same, rel=1e-5)
    for one, other in zip(gradients[0].values, others[0].values, strict=True):
        assert np.abs(one.numpy() - other.numpy()).max() <= 1e-5 * np.abs(other.numpy()).max()


@pytest.mark.parametrize("settings, words", [
    ({"views": 0}, ("train_unet.views 0",)), ({"scale": 0.5}, ("train_unet.scale 0.5",)),
    ({"views": 2}, ("both above 1",)), ({"scale": 1.5}, ("both above 1",)),
    ({"views": 2, "scale": 1.5, "encode_on_the_fly": True}, ("views 2",)),
    ({"precision": "fp16"}, ("fp16",)), ({"precision": "bf16"}, ("compute capability 8.0",)),
])
def test_settings_that_contradict_each_other_are_refused(data, tmp_path, settings, words):
    refused(lambda: Stages(changed(**settings), data, tmp_path / "run", device="cpu"), *words)


def test_bf16_changes_gradients_by_rounding_alone(run, data):
    """On the CPU, where it is refused to users for its speed, with weights that are nowhere zero."""
    store, found = LatentStore(run / "latents"), []
    for settings in ({}, {"precision": "bf16"}, {"precision": "bf16", "checkpoint_blocks": True, "micro_batch": 1}):
        trainer = UNetTrainer(changed(**settings), store, None, run, []).build()
        random = np.random.default_rng(1)
        for parameter in trainer.network.parameters():
            if not parameter.numpy().any():
                parameter.assign(jt.array(random.normal(0, 0.05, parameter.shape).astype(np.float32)))
        rounded = [name for name, layer in trainer.network.named_modules() if getattr(layer, "rounded", False)]
        losses, gradients = trainer.compute(5, trainer.batch(5))
        values = {n: v.numpy() for n, v in zip(gradients[0].names, gradients[0].values, strict=True)}
        found.append((losses, values, rounded))
        trainer.update(5, 1e-3, gradients)
        assert all(v.dtype == "float32" for v in trainer.state.variables.values())
    (losses, exact, none), (close, values, layers), (same, recomputed, _) = found
    assert not none and "input_blocks.0.0" not in layers and "out.2" not in layers
    assert {"input_blocks.1.0.in_layers.2", "middle_block.1.qkv", "output_blocks.0.0.in_norm.mlp_gamma"} <= set(layers)
    assert close != losses and close == pytest.approx(losses, rel=2e-2, abs=1e-4)
    assert same == pytest.approx(close, rel=1e-3, abs=1e-5)
    for name, value in exact.items():
        for other in (values, recomputed):
            assert np.linalg.norm(other[name] - value) < 0.2 * np.linalg.norm(value), name
    for other in (values, recomputed):
        whole, difference = (np.linalg.norm(np.concatenate([v.ravel() for v in part])) for part in (
            exact.values(), [other[name] - value for name, value in exact.items()]))
        assert 1e-4 * whole < difference < 5e-2 * whole


def test_a_convolution_of_bf16_operands_adds_up_in_fp32():
    random = np.random.default_rng(0)
    x, weight, bias, slope = (jt.array(random.standard_normal(shape, np.float32))
                              for shape in ((2, 16, 9, 12), (24, 16, 3, 3), (24,), (2, 24, 5, 6)))

    def cut(value):  # Jittor on the CPU drops the lower half, where CUDA rounds
        return jt.array((value.numpy().view(np.uint32) >> 16 << 16).view(np.float32))

    found = []
    for function, given, back in (
        (rounded_convolution, (x, weight), slope), (jt.nn.conv2d, (cut(x), cut(weight)), cut(slope)),
    ):
        y = function(*given, bias, 2, 1)
        found.append([y, *jt.grad((y * back).sum(), [*given, bias])])
        assert all(v.dtype == "float32" for v in found[-1])
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) < 2**-7  # the result is cut, too
