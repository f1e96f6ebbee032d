"""Pictures larger than the network's: rounds that grow, canvases, and windows."""
import dataclasses

import numpy as np
import pytest
from helpers import TINY, made_up, refused

from jiidm import Generator
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.config import InferenceConfig, RoundConfig
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.inference.windows import WindowedConditions, window_starts
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.runtime import jt

CONFIG = dataclasses.replace(TINY, inference=InferenceConfig((RoundConfig(2.0, "ddim20", 2),)))


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for kind, network in (("autoencoder", Autoencoder(CONFIG.autoencoder)), ("unet", UNet(CONFIG.unet))):
        save_checkpoint(folder / f"{kind}.safetensors", kind, arrays_of(made_up(network, 1)), CONFIG, 1)
    return Generator.from_checkpoint(folder, "cpu")


@pytest.fixture(scope="module")
def example():
    photo, labels = draw_landscape(1, 128, 96)
    return labels, photo


def rounds(*scales):
    return [{"guidance": 2.0, "respacing": "ddim20", "start": 2, "scale": scale} for scale in scales]


def test_a_round_may_grow_and_reads_the_masks_own_pixels(generator, example):
    labels, photo = example
    grown = generator.infer(labels, photo, rounds(1, 2))
    assert grown.size == (128, 96)
    assert generator.infer(labels, photo, rounds(1, 2), size="mask").size == (128, 96)
    assert generator.infer(labels, photo, rounds(1, 2), size=(64, 48)).size == (64, 48)
    # a change of single pixels that the network's own size does not show
    other = labels.copy()
    other[1::2, 1::2] = (other[1::2, 1::2] + 1) % 29
    other[0::2, 0::2] = labels[0::2, 0::2]
    assert not np.array_equal(grown, generator.infer(other, photo, rounds(1, 2)))


def test_a_grown_picture_is_the_same_alone_and_in_a_batch(generator, example):
    labels, photo = example
    alone = generator.infer(labels, photo, rounds(1, 2), names=["a"])
    pair = generator.infer([labels[::-1].copy(), labels], [photo, photo], rounds(1, 2), names=["b", "a"])
    assert np.array_equal(alone, pair[1]) and not np.array_equal(pair[0], pair[1])


def test_colours_go_from_class_to_class_at_every_size(generator, example):
    labels, photo = example
    settings = {"rounds": rounds(1, 2), "color_transfer": "reinhard"}
    by_class = generator.infer(labels, photo, **settings, recipe={"final_color_transfer": "reinhard"},
                               style_labels=labels)
    assert by_class.size == (128, 96)
    assert not np.array_equal(by_class, generator.infer(labels, photo, **settings,
                                                        recipe={"final_color_transfer": "reinhard"}))


def test_a_round_cannot_shrink_the_picture(generator, example):
    refused(lambda: generator.infer(*example, rounds(2, 1)), "scales are 2, 1", "cannot shrink")
    refused(lambda: generator.infer(*example, rounds(0.5)), "scale 0.5", "1 to 8")


@pytest.mark.parametrize("canvas, words", [
    ([130, 96], ("canvas 130x96", "multiples of 4")),
    ([48, 96], ("canvas 48x96", "at least the network's 64x48")),
    ([128], ("canvas [128]", "a width and a height")),
])
def test_canvases_that_cannot_be_used_are_refused(generator, example, canvas, words):
    refused(lambda: generator.infer(*example, recipe={"canvas": canvas}), *words)


def test_a_panorama_is_drawn_in_windows_and_a_far_change_of_the_mask_stays_far(generator, example):
    labels, photo = example
    wide = np.concatenate([labels, labels[:, ::-1]], 1)
    recipe = {"canvas": [256, 48]}
    panorama = np.asarray(generator.infer(wide, photo, recipe=recipe), np.int16)
    assert panorama.shape == (48, 256, 3)
    changed = wide.copy()
    changed[:, -16:] = (changed[:, -16:] + 1) % 29
    difference = np.abs(panorama - np.asarray(generator.infer(changed, photo, recipe=recipe), np.int16)).max((0, 2))
    assert difference[:64].mean() < 0.1 * difference[192:].mean()


def test_windows_cover_all_and_overlap():
    for length, window in ((64, 16), (17, 16), (16, 16), (100, 33)):
        starts = window_starts(length, window)
        assert starts[0] == 0 and starts[-1] == length - window
        assert all(0 < b - a <= 0.75 * window + 1 for a, b in zip(starts, starts[1:], strict=False))


class Halves:
    """Conditions whose prediction is half of the latents, plus, without the mask, where the window is."""

    def __init__(self, top, left):
        self.offset = top + left

    def prepare(self, timesteps):
        self.timesteps = timesteps

    def predict(self, z, t, conditional=True, null=False):
        return [z * 0.5] * conditional + [jt.zeros_like(z) + self.offset] * null


def test_predictions_of_windows_are_averaged():
    windowed = WindowedConditions(Halves, (8, 8), (12, 20))
    windowed.prepare([3])
    z = np.random.default_rng(0).standard_normal((2, 4, 12, 20)).astype(np.float32)
    conditional, null = (v.numpy() for v in windowed.predict(jt.array(z), 3, null=True))
    np.testing.assert_allclose(conditional, z / 2, rtol=1e-5, atol=1e-6)
    assert null[0, 0, 0, 0] == 0 and abs(null[0, 0, -1, -1] - 16) < 1e-5  # the corners are of one window each
    assert (np.diff(null[0, 0, 0]) >= -1e-5).all()  # and between them the windows blend
