"""Batches prepared ahead in threads, random views of photos and label maps, and the store of latents made with both."""
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import refused
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import fit_labels
from jiidm.data.loader import Loader
from jiidm.data.pictures import fit_photo
from jiidm.data.views import View, draw_views, load_pairs, load_photos, whole_view
from jiidm.system.errors import InputError

PALETTE = np.arange(0, 250, 25)[:, None].repeat(3, 1).astype(np.uint8)


def random_of(step, purpose=0):
    return np.random.Generator(np.random.PCG64([3, step, purpose]))


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("jiidm-loader")]


@pytest.fixture
def folder(tmp_path):
    """Six photos of 64x48 and their label maps: blocks of 8 pixels, the photo's grey is 25 times the label."""
    for part in ("imgs", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for name in "abcdef":
        labels = np.random.default_rng(ord(name)).integers(0, 10, (6, 8)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(labels).save(tmp_path / "data" / "labels" / f"{name}.png")
        Image.fromarray(PALETTE[labels]).save(tmp_path / "data" / "imgs" / f"{name}.png")
    return TrainingFolder(tmp_path / "data")


# ------------------------------------------------------------------------------------------------------------- views

@given(st.integers(0, 2**32), st.integers(8, 60), st.integers(8, 60), st.floats(1, 3), st.data())
def test_views_lie_within_the_picture(seed, width, height, scale, data):
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    for view in draw_views(np.random.default_rng(seed), 4, width, height, rows, columns, scale):
        assert width <= view.width <= round(width * scale) and height <= view.height <= round(height * scale)
        assert view.cut(np.zeros((view.height, view.width))).shape == (rows, columns)
        assert view.top >= 0 and view.left >= 0


def test_views_at_scale_one_are_crops_and_mirror_images_as_ever():
    random, views = random_of(7), draw_views(random_of(7), 5, 64, 48, 32, 32)
    for view in views:
        assert (view.width, view.height, view.rows, view.columns) == (64, 48, 32, 32)
        assert (view.top, view.left) == (random.integers(0, 17), random.integers(0, 33))
        assert view.mirrored == (random.random() < 0.5)
    assert {view.mirrored for view in draw_views(random_of(8), 20, 64, 48, 32, 32)} == {True, False}


def test_views_come_from_the_generator_alone():
    views = [draw_views(random_of(step), 3, 64, 48, 48, 64, 1.5) for step in (1, 1, 2)]
    assert views[0] == views[1] != views[2]
    assert len({view.width for view in views[0] + views[2]}) > 3


def test_a_cut_view_is_that_part_of_the_photo(folder):
    views = [View(64, 48, 5, 9, 20, 30, False), View(64, 48, 5, 9, 20, 30, True), View(80, 60, 7, 11, 20, 30, False)]
    photos = load_photos(folder, ["a", "b", "c"], views)
    assert photos.shape == (3, 20, 30, 3) and photos.dtype == np.uint8
    assert np.array_equal(photos[0], folder.photo("a")[5:25, 9:39])
    assert np.array_equal(photos[1], folder.photo("b")[5:25, 9:39][:, ::-1])
    assert np.array_equal(photos[2], fit_photo(folder.photo("c"), 80, 60)[7:27, 11:41])


def test_photo_and_labels_are_seen_alike(folder):
    views = draw_views(random_of(1), 6, 64, 48, 40, 40, 1.6)
    photos, labels = load_pairs(folder, folder.names, views, 29)
    assert labels.shape == (6, 40, 40) and labels.dtype == np.uint8
    near = np.abs(photos[..., 0].astype(int) - 25 * labels.astype(int)) <= 12
    assert near.mean() > 0.85  # but for the edges between blocks, which the photo's resizing mixes
    mirrored, _ = load_pairs(folder, folder.names, [v._replace(mirrored=not v.mirrored) for v in views], 29)
    assert np.abs(mirrored[..., 0].astype(int) - 25 * labels.astype(int)).mean() > 30


def test_the_whole_view_is_the_fitted_picture(folder):
    photos, labels = load_pairs(folder, ["a"], [whole_view(32, 24)], 29)
    assert np.array_equal(photos[0], fit_photo(folder.photo("a"), 32, 24))
    assert np.array_equal(labels[0], fit_labels(folder.labels("a"), 32, 24))


def test_errors_name_the_file(folder, monkeypatch):
    (folder.path / "labels" / "b.png").write_bytes(b"nothing")
    refused(lambda: load_pairs(folder, ["a", "b"], [whole_view(64, 48)] * 2, 29), folder.path / "labels" / "b.png")

    def broken(*arguments):
        raise RuntimeError("no more room\nat line 7")

    monkeypatch.setattr("jiidm.data.views.fit_photo", broken)
    refused(lambda: load_photos(folder, ["a"], [whole_view(64, 48)]), folder.path / "imgs" / "a.png", "no more room")


# ------------------------------------------------------------------------------------------------------------ loader

def test_batches_come_in_the_order_of_their_steps():
    def batch_of(step):
        time.sleep(float(random_of(step).random()) * 0.01)
        return step, random_of(step).random(3).tolist()

    expected = [(step, random_of(step).random(3).tolist()) for step in range(20)]
    for workers in (1, 2, 5):
        with Loader(batch_of, 0, 20, workers, ahead=3) as batches:
            assert list(batches) == expected
    with Loader(batch_of, 13, 20) as batches:  # a run that goes on
        assert list(batches) == expected[13:]


def test_no_more_is_prepared_than_asked_for():
    started = []
    with Loader(started.append, 0, 100, workers=4, ahead=3) as batches:
        for step in range(5):
            next(batches)
            time.sleep(0.02)
            assert max(started) <= step + 3
    with Loader(started.append, 5, 5) as batches:
        assert list(batches) == []


def test_batches_are_prepared_while_the_consumer_computes():
    started, arrived = [], threading.Event()

    def batch_of(step):
        started.append(step)
        if step == 3:
            arrived.set()

    with Loader(batch_of, 0, 10, workers=1, ahead=3) as batches:
        next(batches)
        assert arrived.wait(5)  # without another request


def test_an_error_comes_at_its_step_with_the_files_name(folder):
    (folder.path / "imgs" / "d.png").write_bytes(b"nothing")
    given_out = []
    with pytest.raises(InputError, match="d.png: not a picture"), \
            Loader(lambda step: load_photos(folder, [folder.names[step]], [whole_view(8, 6)]), 0, 6) as batches:
        given_out.extend(batches)
    assert not loader_threads()
    with Loader(lambda step: load_photos(folder, [folder.names[step]], [whole_view(8, 6)]), 0, 6) as batches:
        for _ in range(3):
            next(batches)
        refused(lambda: next(batches), "d.png")


def test_no_thread_is_left():
    with Loader(lambda step: time.sleep(0.01), 0, 10**9, workers=3) as batches:
        next(batches)
        assert len(loader_threads()) == 3
    assert not loader_threads()
    with pytest.raises(KeyboardInterrupt), Loader(lambda step: step, 0, 10**9) as batches:
        for step in batches:
            if step == 4:
                raise KeyboardInterrupt
    assert not loader_threads()


# ------------------------------------------------------------------------------------------------- store of latents

class _Encoder:
    """In the place of an autoencoder: the mean of each square of 4 x 4 pixels, in two channels."""

    def __init__(self):
        from jiidm.system.runtime import jt

        self.quantize = SimpleNamespace(embedding=SimpleNamespace(weight=jt.zeros((4, 2))))

    def encode(self, x):
        n, _, h, w = x.shape
        return x[:, :2].reshape(n, 2, h // 4, 4, w // 4, 4).mean((3, 5))

    def parameters(self):
        return [self.quantize.embedding.weight]


def test_the_store_of_latents_holds_photos_and_mirror_images(folder, tmp_path, monkeypatch):
    from jiidm.config import Config, ImageConfig
    from jiidm.data import latents

    monkeypatch.setattr(latents, "_BATCH", 4)  # six photos: a whole batch and a part of one
    store = latents.write_latents(tmp_path / "latents", _Encoder(), folder, Config(image=ImageConfig(64, 48)))
    assert store.latents.shape == (12, 2, 12, 16) and store.labels.shape == (12, 12, 16)
    assert isinstance(store.latents, np.memmap) and isinstance(store.labels, np.memmap)
    for i, name in enumerate(folder.names):
        means = folder.photo(name)[..., 0].reshape(12, 4, 16, 4).mean((1, 3)) / 127.5 - 1
        assert np.allclose(store.latents[2 * i, 0], means, atol=1e-5)
        assert np.allclose(store.latents[2 * i + 1, 0], means[:, ::-1], atol=1e-5)
        labels = folder.labels(name)
        assert np.array_equal(store.labels[2 * i], labels[::4, ::4])
        assert np.array_equal(store.labels[2 * i + 1], labels[:, ::-1][::4, ::4])
    assert not loader_threads()
    (folder.path / "imgs" / "f.png").write_bytes(b"")
    refused(lambda: latents.write_latents(tmp_path / "other", _Encoder(), folder, Config(image=ImageConfig(64, 48))),
            "f.png")
    assert not loader_threads() and list((tmp_path / "other").iterdir()) == []
