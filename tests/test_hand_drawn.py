"""Label maps that look drawn by hand, and timesteps where the recipe goes: what the UNet's training draws."""
import dataclasses

import numpy as np
from helpers import TINY

from jiidm.config import UNetTrainingConfig
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.hand_drawn import draw_by_hand
from jiidm.data.labels import NO_CLASS
from jiidm.training.unet import UNetTrainer


def test_a_map_keeps_its_classes_and_most_of_its_places():
    labels = draw_landscape(3, 64, 48)[1]
    drawn = [draw_by_hand(labels, np.random.default_rng(seed)) for seed in range(40)]
    assert all(each.dtype == np.uint8 and set(np.unique(each)) <= {*np.unique(labels), NO_CLASS} for each in drawn)
    kept = np.array([(each == labels)[each != NO_CLASS].mean() for each in drawn])
    assert kept.min() > 0.5 and 0.8 < kept.mean() < 1
    left_out = [np.isin(each, NO_CLASS).any() for each in drawn]
    assert 0 < sum(left_out) < len(drawn)
    assert np.array_equal(drawn[7], draw_by_hand(labels, np.random.default_rng(7)))


def test_small_regions_merge_into_their_surroundings():
    labels = np.zeros((48, 64), np.uint8)
    labels[:, 40:] = 5
    labels[20, 10] = 9
    drawn = [draw_by_hand(labels, np.random.default_rng(seed)) for seed in range(20)]
    assert sum(9 in each for each in drawn) < 10


def test_timesteps_are_drawn_where_the_recipe_goes(tmp_path):
    def timesteps(**settings):
        training = UNetTrainingConfig(steps=1, keep_at=(1,), **settings)
        trainer = UNetTrainer(dataclasses.replace(TINY, train_unet=training), None, None, tmp_path, [])
        return trainer._draw_timesteps(0, 4000)

    assert abs((timesteps() < 600).mean() - 0.6) < 0.03
    focused = timesteps(focus_below=600)
    assert abs((focused < 600).mean() - (0.8 + 0.2 * 0.6)) < 0.03 and focused.max() > 900
