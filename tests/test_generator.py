"""Generator: what it takes, what it refuses, and that an image depends on nothing but its own inputs and the seed."""
import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import TINY
from PIL import Image

import jiidm
from jiidm import Generator, InputError
from jiidm.checkpoint import arrays_of, load_checkpoint, save_checkpoint, save_tensors
from jiidm.commands.main import main
from jiidm.config import (
    DiffusionConfig,
    InferenceConfig,
    RoundConfig,
    to_dict,
    with_recipe,
)
from jiidm.contest.job import ContestJob, make_pictures
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.pictures import fit_photo
from jiidm.inference.color_transfer import METHODS, transfer_color
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.runtime import jt

ROUNDS = (RoundConfig(2.0, "ddim20", 4), RoundConfig(2.0, "ddim20", 3))
CONFIG = dataclasses.replace(TINY, inference=InferenceConfig(ROUNDS))


def made_up_weights(network, seed):
    """Random tensors of a network's names and shapes: nothing stays zero, so every input counts."""
    random = np.random.default_rng(seed)
    return {
        name: (random.standard_normal(v.shape) / np.sqrt(np.prod(v.shape[1:]) if v.ndim > 1 else 4)).astype(np.float32)
        for name, v in arrays_of(network).items()
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    autoencoder = made_up_weights(Autoencoder(CONFIG.autoencoder), 0)
    save_checkpoint(folder / "autoencoder.safetensors", "autoencoder", autoencoder, CONFIG, 10)
    for seed in (1, 2):
        unet = made_up_weights(UNet(CONFIG.unet), seed)
        save_checkpoint(folder / f"unet-{seed}.safetensors", "unet", unet, CONFIG, seed)
    return folder


@pytest.fixture(scope="module")
def generator(checkpoints):
    return Generator.from_checkpoint(checkpoints)


@pytest.fixture(scope="module")
def examples():
    drawn = [draw_landscape(seed, 64, 48) for seed in range(3)]
    return [labels for _, labels in drawn], [photo for photo, _ in drawn]


def pixels(image):
    return np.asarray(image).astype(int)


def test_description_of_the_weights(generator, checkpoints):
    lines = generator.describe().splitlines()
    assert lines[0] == f"{checkpoints / 'autoencoder.safetensors'}: autoencoder, step 10"
    assert lines[1:] == [f"{checkpoints / f'unet-{seed}.safetensors'}: unet, step {seed}" for seed in (1, 2)]


def test_result_is_an_rgb_picture_of_the_models_size_and_repeats(generator, examples):
    masks, styles = examples
    first, second = (generator.infer(masks[0], styles[1], rounds=2) for _ in range(2))
    assert (first.mode, first.size) == ("RGB", (64, 48))
    assert (pixels(first) == pixels(second)).all()


def test_mask_style_seed_and_name_each_change_the_picture(generator, examples):
    masks, styles = examples
    base = pixels(generator.infer(masks[0], styles[0], rounds=1))
    for mask, style, settings in (
        (masks[1], styles[0], {}), (masks[0], styles[1], {}), (masks[0], styles[0], {"seed": 1}),
        (masks[0], styles[0], {"names": ["other"]}),
    ):
        assert (pixels(generator.infer(mask, style, rounds=1, **settings)) != base).any()


def test_an_image_is_the_same_alone_in_a_batch_first_or_last(generator, examples):
    masks, styles = examples
    names = ["a", "b", "c"]
    batch = generator.infer(masks, styles, rounds=2, names=names)
    reverse = generator.infer(masks[::-1], styles[::-1], rounds=2, names=names[::-1])[::-1]
    for i in range(3):
        alone = generator.infer([masks[i]], [styles[i]], rounds=2, names=[names[i]])[0]
        assert (pixels(alone) == pixels(batch[i])).all()
        assert (pixels(alone) == pixels(reverse[i])).all()


def test_paths_pil_images_and_arrays_give_the_same_picture(generator, examples, tmp_path):
    mask, style = examples[0][0], examples[1][0]
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(style).save(tmp_path / "s.png")
    wanted = pixels(generator.infer(mask, style, rounds=1, names=["m"]))
    for m, s in ((tmp_path / "m.png", tmp_path / "s.png"), (str(tmp_path / "m.png"), Image.fromarray(style)),
                 (Image.fromarray(mask), style)):
        assert (pixels(generator.infer(m, s, rounds=1, names=["m"])) == wanted).all()
    # the name is the stem of the mask's path
    assert (pixels(generator.infer(tmp_path / "m.png", style, rounds=1)) == wanted).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_style_photos_of_any_mode_are_converted(generator, examples, mode):
    style = Image.fromarray(examples[1][0]).convert(mode)
    assert generator.infer(examples[0][0], style, rounds=1).mode == "RGB"


def test_size_mask_gives_the_masks_size_and_a_single_pixel_is_a_mask(generator, examples):
    big = np.kron(examples[0][0], np.ones((3, 3), np.uint8))
    assert generator.infer(big, examples[1][0], rounds=1, size="mask").size == (192, 144)
    assert generator.infer(np.array([[2]]), examples[1][0][:1, :1], rounds=1).size == (64, 48)
    assert generator.infer(big, examples[1][0], rounds=1, size=(40, 31)).size == (40, 31)


def test_color_transfer_counts_from_the_second_round_on(generator, examples):
    mask, style = examples[0][0], examples[1][1]
    results = {
        (rounds, transfer): pixels(generator.infer(mask, style, rounds=rounds, color_transfer=transfer))
        for rounds in (1, 2) for transfer in (True, False, "histogram")
    }
    assert (results[1, True] == results[1, False]).all()
    assert (results[2, True] != results[2, False]).any()
    assert (results[2, True] != results[2, "histogram"]).any()


@pytest.mark.parametrize("method", METHODS)
def test_final_color_transfer_is_a_step_after_the_last_round(checkpoints, generator, examples, method):
    mask, style = examples[0][0], examples[1][1]
    for rounds in (1, 2):
        plain = generator.infer(mask, style, rounds=rounds)
        expected = transfer_color(np.asarray(plain), fit_photo(style, 64, 48), method)
        given = generator.infer(mask, style, rounds=rounds, recipe={"final_color_transfer": method})
        assert (pixels(given) == expected).all() and (pixels(plain) != expected).any()
    own = Generator.from_checkpoint(checkpoints)
    own.config = with_recipe(CONFIG, {"final_color_transfer": method})
    assert (pixels(own.infer(mask, style)) == expected).all()
    assert (pixels(own.infer(mask, style, recipe={"final_color_transfer": ""})) == pixels(plain)).all()
    half = transfer_color(np.asarray(plain), fit_photo(style, 64, 48), method, 0.5)
    assert (pixels(own.infer(mask, style, recipe={"final_color_share": 0.5})) == half).all()
    assert (half != expected).any()
    big = generator.infer(np.kron(mask, np.ones((2, 2), np.uint8)), style, size="mask",
                          recipe={"final_color_transfer": method})
    assert big.size == (128, 96)


def test_ensemble_is_the_mean_of_the_weights(generator, checkpoints, examples):
    mask, style = examples[0][0], examples[1][0]
    files = [checkpoints / "autoencoder.safetensors", checkpoints / "unet-2.safetensors"]
    last = pixels(Generator.from_checkpoint(files).infer(mask, style, rounds=1))
    assert (pixels(generator.infer(mask, style, rounds=1, ensemble=False)) == last).all()
    assert (pixels(generator.infer(mask, style, rounds=1, ensemble=[0, 5])) == last).all()
    both = pixels(generator.infer(mask, style, rounds=1))
    assert (both != last).any()
    assert (pixels(generator.infer(mask, style, rounds=1, ensemble=[1, 1])) == both).all()


def test_rounds_may_be_settings_and_steps_are_reported(generator, examples):
    mask, style = examples[0][0], examples[1][0]
    steps = []
    picture = generator.infer(
        mask, style, rounds=[ROUNDS[0], {"guidance": 2.0, "respacing": "ddim20", "start": 3}],
        on_step=steps.append,
    )
    assert (pixels(picture) == pixels(generator.infer(mask, style, rounds=2))).all()
    assert [(s.round, s.done, s.steps) for s in steps] == [(0, i, 4) for i in range(1, 5)] + [
        (1, i, 3) for i in range(1, 4)]
    assert [s.pictures is not None for s in steps] == [False] * 3 + [True] + [False] * 2 + [True]
    assert (pixels(steps[-1].pictures[0]) == pixels(picture)).all()


@pytest.mark.parametrize("stop", [(0, 2), (0, 4), (1, 1)])
def test_what_on_step_raises_ends_the_call_and_leaves_the_generator_as_it_was(generator, examples, stop):
    mask, style = examples[0][0], examples[1][0]
    expected, seen = pixels(generator.infer(mask, style)), []

    def cancel(step):
        seen.append((step.round, step.done))
        if seen[-1] == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generator.infer(mask, style, on_step=cancel, ensemble=False)
    assert seen[-1] == stop and not jt.flags.no_grad
    assert (pixels(generator.infer(mask, style)) == expected).all()


def test_previews_show_the_pictures_colours():
    """Of the default weights: small, in time like the picture; nothing changes by asking."""
    generator, previews = Generator.from_checkpoint(), []
    drawn = [draw_landscape(seed, 192, 144) for seed in (3, 4)]
    masks, styles = [labels for _, labels in drawn], [photo for photo, _ in reversed(drawn)]
    settings = {"rounds": 1, "recipe": {"sampler": "dpmpp", "steps": 6, "final_color_transfer": ""}}
    pictures = generator.infer(masks, styles, on_step=lambda step: previews.append(step.preview()), **settings)
    assert all(np.array_equal(*pair) for pair in zip(pictures, generator.infer(masks, styles, **settings), strict=True))
    factor = generator.config.autoencoder.factor
    size = generator.width // factor, generator.height // factor
    small = np.stack([np.asarray(picture.resize(size, Image.Resampling.BOX)) for picture in pictures])
    assert len(previews) == 6 and {(p.shape, p.dtype) for p in previews} == {(small.shape, small.dtype)}

    def correlation(preview):
        return min(np.corrcoef(preview[..., c].ravel(), small[..., c].ravel())[0, 1] for c in range(3))

    assert correlation(previews[-1]) > 0.7  # colours are not all that latents hold
    assert correlation(previews[0]) < correlation(previews[2]) - 0.1 < correlation(previews[-1])


def test_colors_go_from_class_to_class_by_given_and_by_predicted_maps(generator, examples, tmp_path, monkeypatch):
    masks, styles = examples
    recipe = {"final_color_transfer": "transport"}
    last = generator.infer(masks[0], styles[1], rounds=1)
    whole = generator.infer(masks[0], styles[1], rounds=1, recipe=recipe)
    given = generator.infer(masks[0], styles[1], rounds=1, recipe=recipe, style_labels=masks[1])
    expected = transfer_color(np.asarray(last), styles[1], "transport", 1.0, masks[0], masks[1])
    assert (pixels(given) == expected).all() and (pixels(given) != pixels(whole)).any()
    Image.fromarray(masks[1]).save(tmp_path / "style.png")
    batch = generator.infer([masks[2], masks[0]], [styles[2], styles[1]], rounds=1, recipe=recipe, names=["", ""],
                            style_labels=[masks[2], tmp_path / "style.png"])
    assert (pixels(batch[1]) == pixels(given)).all()
    asked = []
    segmenter = SimpleNamespace(segment=lambda photo: SimpleNamespace(labels=asked.append(photo) or masks[1]))
    monkeypatch.setitem(generator.__dict__, "_segmenter", segmenter)
    predicted = generator.infer(masks[0], styles[1], rounds=1, recipe={**recipe, "color_by_class": True})
    assert (pixels(predicted) == pixels(given)).all() and (asked[0] == styles[1]).all()
    generator.infer(masks[0], styles[1], rounds=1, recipe={"color_by_class": True})  # one round, without a transfer
    assert len(asked) == 1


@pytest.mark.parametrize("maps, words", [
    (np.zeros((48, 48), np.uint8), "48x48, but its photo is 64x48"),
    (np.full((48, 64), 29, np.uint8), "label 29"),
    ([np.zeros((48, 64), np.uint8)] * 2, "expected one label map"),
    ("no-such.png", "no-such.png"),
])
def test_style_label_maps_that_cannot_be_used_are_refused(generator, examples, maps, words):
    with pytest.raises(InputError, match=words):
        generator.infer(examples[0][:1], examples[1][:1], rounds=1,
                        style_labels=maps if isinstance(maps, list) else [maps])


@pytest.mark.parametrize("settings, words", [
    ({"rounds": 0}, "rounds 0"),
    ({"rounds": 3}, "expected 1 to 2"),
    ({"rounds": []}, "rounds"),
    ({"rounds": [{"guidanc": 2.0}]}, "guidanc"),
    ({"rounds": [RoundConfig(2.0, "ddim20", 20)]}, "start index 20"),
    ({"rounds": [RoundConfig(2.0, "ddim20", 0)]}, "start index 0"),
    ({"rounds": [RoundConfig(2.0, "ddim7x", 2)]}, "ddim7x"),
    ({"color_transfer": "sepia"}, "reinhard"),
    ({"recipe": {"final_color_transfer": "sepia"}}, "final_color_transfer 'sepia'.*transport"),
    ({"recipe": {"final_color_transfer": True}}, "final_color_transfer.*True"),
    ({"rounds": [RoundConfig(-1.0, "ddim20", 2)]}, "guidance -1"),
    ({"rounds": [RoundConfig(float("nan"), "ddim20", 2)]}, "guidance nan"),
    ({"size": (0, 5)}, "size"),
    ({"ensemble": [1.0]}, "2 weights"),
    ({"ensemble": [-1, 2]}, "2 weights"),
    ({"size": "big"}, "big"),
])
def test_settings_that_cannot_be_used_are_refused(generator, examples, settings, words):
    with pytest.raises(InputError, match=words):
        generator.infer(examples[0][0], examples[1][0], **{"rounds": 1, **settings})


# ---- recipes

def test_each_setting_of_a_recipe_reaches_the_picture(checkpoints, examples):
    mask, style = examples[0][0], examples[1][1]
    generator = Generator.from_checkpoint(checkpoints)
    base = pixels(generator.infer(mask, style))
    for change in ({"guidance_rescale": 1.0}, {"sampler": "dpmpp", "steps": 3}, {"rounds": to_dict(ROUNDS[:1])}):
        changed = pixels(generator.infer(mask, style, recipe={**to_dict(CONFIG.inference), **change}))
        assert (changed != base).any(), change
        assert (pixels(generator.infer(mask, style, recipe=CONFIG.inference)) == base).all()


def test_a_guidance_scale_of_0_ignores_the_mask(generator, examples):
    masks, styles = examples
    rounds = {scale: [RoundConfig(scale, "ddim20", 4)] for scale in (0.0, 0.5, 1.0)}
    drawn = {scale: [pixels(generator.infer(m, styles[0], rounds=r, names=["a"])) for m in (masks[0], masks[1])]
             for scale, r in rounds.items()}
    assert (drawn[0.0][0] == drawn[0.0][1]).all()
    assert all((first != second).any() for first, second in (drawn[0.5], drawn[1.0]))


def test_recipe_in_place_of_the_checkpoints(tmp_path):
    whole = InferenceConfig(ROUNDS[:1], guidance_rescale=0.5)
    (tmp_path / "recipe.yaml").write_text("guidance_rescale: 0.5\nsampler: dpmpp\n")
    (tmp_path / "empty.yaml").write_text("")
    some = dataclasses.replace(CONFIG.inference, guidance_rescale=0.5, sampler="dpmpp")
    for recipe, expected in (
        (None, CONFIG.inference), (whole, whole), ({"guidance_rescale": 0.5, "sampler": "dpmpp"}, some),
        (tmp_path / "recipe.yaml", some), (str(tmp_path / "recipe.yaml"), some),
        (tmp_path / "empty.yaml", CONFIG.inference), ({"rounds": to_dict(ROUNDS[:1])}, InferenceConfig(ROUNDS[:1])),
    ):
        assert with_recipe(CONFIG, recipe) == dataclasses.replace(CONFIG, inference=expected)


@pytest.mark.parametrize("recipe, words", [
    ({"guidance_rescal": 1.0}, "recipe: unknown key 'guidance_rescal'"),
    ({"guidance_rescale": 2.0}, "recipe: guidance_rescale 2: expected a number from 0 to 1"),
    ({"guidance_rescale": -0.5}, "recipe: guidance_rescale -0.5: expected a number from 0 to 1"),
    ({"rounds": 3}, "recipe: rounds: expected a list"),
    ({"guidance_from": 100}, "recipe: unknown key 'guidance_from'"),
    (InferenceConfig(sampler="euler"), "recipe: sampler 'euler'"),
    ({"final_color_transfer": "sepia"}, "recipe: final_color_transfer 'sepia'"),
    ({"color_transfer": ""}, "recipe: color_transfer ''"),
    ({"final_color_share": 1.5}, "recipe: final_color_share 1.5: expected a number from 0 to 1"),
    ({"class_noise": 0.0}, "unknown key 'class_noise'"),
    ("no-such.yaml", "no-such.yaml: cannot be read"),
    (3, "recipe 3: expected an InferenceConfig"),
])
def test_recipes_that_cannot_be_used_are_refused(generator, recipe, words):
    before = generator.config
    with pytest.raises(InputError, match=words):
        generator.infer("no-such-mask.png", "no-such-photo.jpg", recipe=recipe)
    assert generator.config == before


def test_a_file_that_is_no_recipe_is_named(tmp_path):
    for text, words in (("- 1", "expected keys and values"), ("steps: [", "cannot be read as YAML"), ("a: 1", "'a'"),
                        ("steps: 0", "steps 0: expected at least 1")):
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(InputError, match=f"recipe.yaml: .*{words}"):
            with_recipe(CONFIG, tmp_path / "recipe.yaml")


def test_the_contests_job_takes_a_recipe(checkpoints, examples, tmp_path):
    (tmp_path / "test" / "labels").mkdir(parents=True), (tmp_path / "imgs").mkdir()
    Image.fromarray(examples[0][0]).save(tmp_path / "test" / "labels" / "m.png")
    Image.fromarray(examples[1][1]).save(tmp_path / "imgs" / "s.jpg")
    (tmp_path / "test" / "label_to_img.json").write_text('{"m.png": "s.jpg"}')
    (tmp_path / "recipe.yaml").write_text("rounds: [{guidance: 2.0, respacing: ddim20, start: 3}]\n"
                                          "guidance_rescale: 0.5\n")
    job = ContestJob(tmp_path / "test", tmp_path, tmp_path / "out", 64, 48)
    assert make_pictures(job, checkpoints, recipe=tmp_path / "recipe.yaml") == []
    expected = Generator.from_checkpoint(checkpoints).infer(
        tmp_path / "test" / "labels" / "m.png", tmp_path / "imgs" / "s.jpg", recipe=tmp_path / "recipe.yaml"
    )
    expected.save(tmp_path / "expected.jpg", quality=95)
    assert (tmp_path / "out" / "m.jpg").read_bytes() == (tmp_path / "expected.jpg").read_bytes()


def test_the_contests_job_takes_the_styles_label_maps(checkpoints, generator, examples, tmp_path):
    for folder in ("test/labels", "imgs", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    masks, styles = examples
    for name, number in (("m", 0), ("n", 2)):
        Image.fromarray(masks[number]).save(tmp_path / "test" / "labels" / f"{name}.png")
        Image.fromarray(styles[number - 1]).save(tmp_path / "imgs" / f"{name}-style.png")
    Image.fromarray(masks[-1]).save(tmp_path / "labels" / "m-style.png")
    (tmp_path / "test" / "label_to_img.json").write_text('{"m.png": "m-style.png", "n.png": "n-style.png"}')
    recipe = {"final_color_transfer": "reinhard"}
    job = ContestJob(tmp_path / "test", tmp_path, tmp_path / "out", 64, 48, style_labels=tmp_path / "labels")
    problems = make_pictures(job, checkpoints, rounds=1, recipe=recipe)
    assert len(problems) == 1 and problems[0].startswith("n.png: ") and "n-style.png: no such file" in problems[0]
    generator.infer(masks[0], styles[-1], rounds=1, recipe=recipe, names=["m"], style_labels=masks[-1]).save(
        tmp_path / "expected.jpg", quality=95)
    assert (tmp_path / "out" / "m.jpg").read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    job = dataclasses.replace(job, style_labels=tmp_path / "none")
    with pytest.raises(InputError, match="none: no such folder"):
        make_pictures(job, checkpoints)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_networks_that_predict_v(checkpoints, examples, tmp_path, zero_terminal_snr):
    """Their configuration says so: other pictures from the same numbers; from the chain's last index as well."""
    config = dataclasses.replace(CONFIG, diffusion=DiffusionConfig(20, prediction="v",
                                                                   zero_terminal_snr=zero_terminal_snr))
    for name, network in (("autoencoder", Autoencoder(CONFIG.autoencoder)), ("unet", UNet(CONFIG.unet))):
        tensors = made_up_weights(network, len(name))
        save_checkpoint(tmp_path / f"{name}.safetensors", name, tensors, config, 1)
    generator = Generator.from_checkpoint(tmp_path)
    rounds = [{"guidance": 2.0, "respacing": "ddim20", "start": 19}]
    for recipe in ({"sampler": "ddim"}, {"sampler": "dpmpp", "steps": 6}):
        picture = pixels(generator.infer(examples[0][0], examples[1][0], rounds=rounds, recipe=recipe))
        assert picture.std() > 1
        other = pixels(generator.infer(examples[0][0], examples[1][1], rounds=rounds, recipe=recipe))
        assert (picture == other).all() == zero_terminal_snr  # nothing of the style photo is in the latent


def test_inputs_that_cannot_be_used_are_refused(generator, examples):
    mask, style = examples[0][0].copy(), examples[1][0]
    mask[7, 5] = 29
    with pytest.raises(InputError, match="29"):
        generator.infer(mask, style, rounds=1)
    with pytest.raises(InputError, match="equal length"):
        generator.infer(examples[0], examples[1][:2], rounds=1)
    with pytest.raises(InputError, match="no-such"):
        generator.infer(examples[0][0], "no-such.jpg", rounds=1)


def test_checkpoints_that_do_not_belong_together_are_refused(checkpoints, tmp_path):
    wide = dataclasses.replace(CONFIG, unet=dataclasses.replace(CONFIG.unet, model_channels=24))
    save_checkpoint(tmp_path / "wide.safetensors", "unet", made_up_weights(UNet(wide.unet), 3), wide, 3)
    files = sorted(checkpoints.glob("*.safetensors"))
    with pytest.raises(InputError, match="wide.safetensors.*instead|wide.safetensors.*averaged"):
        Generator.from_checkpoint([*files, tmp_path / "wide.safetensors"])
    with pytest.raises(InputError, match="0 autoencoders"):
        Generator.from_checkpoint(files[1:])
    with pytest.raises(InputError, match="no such"):
        Generator.from_checkpoint(tmp_path / "absent")


def test_a_retired_key_of_older_checkpoints_is_dropped_where_it_meant_nothing(tmp_path):
    path = tmp_path / "unet.safetensors"
    for key, value, words in (("class_noise", 0.0, None), ("class_noise", 0.25, "unknown key 'class_noise'"),
                              ("guidance_to", 0, None), ("guidance_to", 400, "unknown key 'guidance_to'")):
        config = to_dict(CONFIG)
        config["inference"][key] = value
        metadata = {"format": "jiidm-1", "kind": "unet", "config": json.dumps(config), "step": "1"}
        save_tensors(path, {"a": np.zeros(1, np.float32)}, metadata)
        if words is None:
            assert load_checkpoint(path).config == CONFIG
        else:
            with pytest.raises(InputError, match=words):
                load_checkpoint(path)


def test_load_is_the_generators_loading(checkpoints, examples):
    pictures = [pixels(g.infer(examples[0][0], examples[1][0], rounds=1))
                for g in (jiidm.load(checkpoints), Generator.from_checkpoint(checkpoints))]
    assert (pictures[0] == pictures[1]).all()


def draw(arguments, monkeypatch):
    """Calls `jiidm draw` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["jiidm", "draw", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_draw_makes_one_picture(checkpoints, examples, tmp_path, monkeypatch, capsys):
    mask, style = np.kron(examples[0][0], np.ones((2, 2), np.uint8)), examples[1][1]
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.fromarray(style).save(tmp_path / "s.png")
    (tmp_path / "recipe.yaml").write_text("sampler: dpmpp\nsteps: 3\n")
    inputs, generator = (tmp_path / "m.png", tmp_path / "s.png"), Generator.from_checkpoint(checkpoints)
    for options, settings, size in (
        ((), {}, (128, 96)), (("--size", "model", "--seed", 4), {"seed": 4}, (64, 48)),
        (("--size", "40x30", "--rounds", 1), {"rounds": 1}, (40, 30)),
        (("--size", "model", "--canvas", "128x96"), {"recipe": {"canvas": [128, 96]}}, (128, 96)),
        (("--size", "model", "--style-labels", tmp_path / "m.png"), {"style_labels": mask}, (64, 48)),
        (("--size", "model", "--recipe", tmp_path / "recipe.yaml"), {"recipe": tmp_path / "recipe.yaml"}, (64, 48)),
    ):
        output = tmp_path / "new" / "lake.png"
        assert draw((*inputs, "-o", output, "--checkpoint", checkpoints, *options), monkeypatch) == 0
        assert capsys.readouterr().out == f"{output}: {size[0]}x{size[1]}\n"
        assert (pixels(Image.open(output)) == pixels(generator.infer(*inputs, size=size, **settings))).all()


@pytest.mark.parametrize("options, words", [
    (("m.png", "s.png", "-o", "lake.gif"), "lake.gif: expected the name of a picture"),
    (("none.png", "s.png", "-o", "lake.jpg"), "none.png: no such file"),
    (("m.png", "none.jpg", "-o", "lake.jpg"), "none.jpg: no such file"),
    (("m.png", "s.png", "-o", "lake.jpg", "--size", "big"), "expected mask, model, or a size"),
    (("m.png", "s.png", "-o", "lake.jpg", "--canvas", "wide"), "wide: expected a size such as"),
    (("m.png", "s.png", "-o", "lake.jpg", "--checkpoint", "none"), "none: no such folder"),
    (("m.png", "s.png", "-o", "lake.jpg", "--style-labels", "none.png"), "none.png: no such file"),
    (("m.png", "s.png", "-o", "lake.jpg", "--recipe", "none.yaml"), "none.yaml: cannot be read"),
    (("wrong.png", "s.png", "-o", "lake.jpg"), "wrong.png: label 29"),
])
def test_draw_says_what_is_wrong(checkpoints, examples, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(examples[0][0]).save("m.png")
    Image.fromarray(np.full((4, 4), 29, np.uint8)).save("wrong.png")
    Image.fromarray(examples[1][1]).save("s.png")
    given = options if "--checkpoint" in options else (*options, "--checkpoint", checkpoints)
    assert draw(given, monkeypatch) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.png", "s.png", "wrong.png"]
