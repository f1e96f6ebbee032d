"""The tools as a user runs them, on drawn landscapes: train, infer, package; and what each says to bad input."""
import json
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from helpers import ROOT, TINY, run_main, run_tool
from PIL import Image

import jiidm
from jiidm.checkpoint import load_checkpoint, load_tensors, save_tensors
from jiidm.commands.main import COMMANDS
from jiidm.config import to_dict

CONFIG = {
    **{section: to_dict(getattr(TINY, section)) for section in ("image", "autoencoder", "unet")},
    "train_autoencoder": {"steps": 4, "batch": 2, "crop": 32, "quantize_from": 2, "discriminator_start": 3,
                          "discriminator_channels": 8, "discriminator_layers": 1, "revive_codes_every": 2},
    "train_unet": {"steps": 4, "batch": 3, "keep_at": [2, 4], "sheet_every": 4, "save_every": 3},
    "inference": {"rounds": [{"guidance": 2.0, "respacing": "ddim20", "start": 3},
                             {"guidance": 2.0, "respacing": "ddim20", "start": 2}]},
}
MASKS = 9


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with train/ and test/ (drawn), a configuration and a run trained with it, all made by the commands."""
    top = tmp_path_factory.mktemp("tools")
    (top / "tiny.yaml").write_text(json.dumps(CONFIG))
    for command in (
        ("data", "synthetic", top / "train", "--count", 6, "--width", 64, "--height", 48),
        ("data", "synthetic", top / "test", "--count", MASKS, "--width", 64, "--height", 48, "--seed", 9,
         "--test", "--references", top / "train"),
        ("train", "all", "--config", top / "tiny.yaml", "--data", top / "train", "--run", top / "run"),
    ):
        done = run_main(*command)
        assert done.returncode == 0, done.stderr
    return top


def infer(folders, output, *options, test=None, run=run_main):
    return run("infer", "--input_path", test or folders / "test", "--img_path", folders / "train",
               "--output_path", output, "--checkpoint", folders / "run" / "weights", "--rounds", 2, *options)


@pytest.fixture(scope="module")
def results(folders):
    output = folders / "results"
    done = infer(folders, output, "--batch", 2, "--save-steps", "--overview", folders / "sheet.jpg", run=run_tool)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def broken_test(folders, tmp_path):
    """A copy of the test folder, to be spoilt; returns its path and the names of its masks."""
    shutil.copytree(folders / "test", tmp_path / "test")
    names = sorted(json.loads((tmp_path / "test" / "label_to_img.json").read_text()))
    return tmp_path / "test", names


def test_jiidm_says_what_it_can_do():
    done = run_main("--help")
    assert done.returncode == 0 and all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert run_main("--version").stdout == f"jiidm {jiidm.__version__}\n"
    done = run_main("evalute", "results")
    assert done.returncode == 2 and done.stderr == "error: jiidm has no command evalute; did you mean evaluate?\n"


@pytest.mark.parametrize("tool", sorted(path.stem for path in (ROOT / "tools").glob("*.py") if path.stem != "checkout"))
def test_the_tools_run_where_nothing_is_installed(tmp_path, tool):
    done = subprocess.run([sys.executable, "-S", ROOT / "tools" / f"{tool}.py", "--help"], cwd=tmp_path,
                          env={"PATH": ""}, capture_output=True, text=True)
    if done.returncode:  # a command that needs more than Python to read its arguments
        assert done.returncode == 2 and "is not installed; " in done.stderr and len(done.stderr.splitlines()) == 1
    else:
        assert done.stdout.startswith(f"usage: {tool}.py ")


def test_infer_makes_every_picture_at_the_contests_size(folders, results):
    names = json.loads((folders / "test" / "label_to_img.json").read_text())
    pictures = sorted(p.name for p in results.glob("*.jpg"))
    assert pictures == sorted(n.replace(".png", ".jpg") for n in names) and len(pictures) == MASKS
    for name in pictures:
        with Image.open(results / name) as image:
            image.load()
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 384))


def test_infer_keeps_each_round_and_draws_the_sheet(folders, results):
    stems = [p.stem for p in results.glob("*.jpg")]
    assert {p.name for p in (results / "steps").iterdir()} == {f"{s}-round{i}.jpg" for s in stems for i in (1, 2)}
    with Image.open(folders / "sheet.jpg") as sheet:
        assert sheet.width > 6 * 256 and sheet.height > 2 * 3 * 192


def test_infer_gives_the_same_pictures_one_at_a_time_and_resumes(folders, results, tmp_path):
    names = sorted(p.name for p in results.glob("*.jpg"))
    shutil.copy(results / names[0], tmp_path / names[0])
    (tmp_path / names[1]).write_bytes((results / names[1]).read_bytes()[:900])  # cut off: to be made again
    kept = (tmp_path / names[0]).stat().st_mtime_ns
    done = infer(folders, tmp_path, "--batch", 1, "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / names[0]).stat().st_mtime_ns == kept
    for name in names:
        assert (results / name).read_bytes() == (tmp_path / name).read_bytes()


def test_infer_settings_reach_the_picture(folders, tmp_path):
    done = infer(folders, tmp_path, "--width", 32, "--height", 24, "--quality", 50, "--no-ensemble", "--seed", 3,
                 "--color-transfer", "off")
    assert done.returncode == 0, done.stderr
    sizes = {Image.open(p).size for p in tmp_path.glob("*.jpg")}
    assert sizes == {(32, 24)}


def test_infer_samples_as_it_is_told_and_a_small_cache_changes_nothing(folders, results, tmp_path):
    done = infer(folders, tmp_path / "same", "--batch", "auto", "--sampler", "ddim", "--condition-cache-mb", 0)
    assert done.returncode == 0, done.stderr
    done = infer(folders, tmp_path / "other", "--sampler", "dpmpp", "--steps", 2, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    for path in results.glob("*.jpg"):
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() != path.read_bytes()


def test_infer_reports_what_is_broken_and_makes_the_rest(folders, broken_test, tmp_path):
    test, names = broken_test
    labels = next(p for p in test.iterdir() if p.is_dir())
    shutil.copytree(folders / "train" / "imgs", tmp_path / "photos")
    photo = next((tmp_path / "photos").iterdir())
    mask = np.asarray(Image.open(labels / names[0])).copy()
    mask[4, 7] = 77
    Image.fromarray(mask).save(labels / names[0])
    (labels / names[1]).write_bytes(b"no picture")
    Image.new("RGB", (64, 48)).save(labels / names[2])
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(labels / names[3])
    Image.fromarray(np.full((1, 1), 2, np.uint8)).save(labels / names[6])  # a mask like any other
    (tmp_path / "photos" / "cut.jpg").write_bytes(photo.read_bytes()[:400])
    for mode, suffix in (("CMYK", "jpg"), ("RGBA", "png"), ("L", "jpg")):
        Image.open(photo).convert(mode).save(tmp_path / "photos" / f"{mode}.{suffix}")
    references = dict(zip(names, [photo.name] * 4 + ["absent.jpg", "cut.jpg", "CMYK.jpg", "RGBA.png", "L.jpg"],
                          strict=True))
    (test / "label_to_img.json").write_text(json.dumps(references))
    (tmp_path / "out").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "out" / names[0].replace(".png", ".jpg"))  # of an earlier run
    done = run_main("infer", "--input_path", test, "--img_path", tmp_path / "photos", "--output_path", tmp_path / "out",
                    "--checkpoint", folders / "run" / "weights", "--rounds", 1, "--batch", 2,
                    "--overview", tmp_path / "sheet.png")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("not made: ")]
    words = ["label 77", "not a picture", "colour", "16-bit", "absent.jpg", "cut.jpg: broken"]
    for name, word in zip(names, words, strict=False):
        assert any(name in line and word in line for line in lines), (name, word, lines)
    assert len(lines) == len(words) and (tmp_path / "sheet.png").is_file()
    made = {n.replace(".png", ".jpg") for n in (names[0], *names[6:])}
    assert {p.name for p in (tmp_path / "out").glob("*.jpg")} == made


def spoil_weights(folder, kind):
    """Spoils a folder of weights; returns the name of the file and what the error has to say of it."""
    path = folder / "unet-0000002.safetensors"
    tensors, metadata = load_tensors(path)
    tensors = {name: value.copy() for name, value in tensors.items()}
    config = json.loads(metadata["config"])
    if kind == "NaN":
        tensors["out.2.bias"][1] = np.nan
        words = "NaN"
    elif kind == "other shape":
        tensors["out.2.bias"] = np.zeros(9, np.float16)
        words = "out.2.bias"
    elif kind == "other architecture":
        for unet in folder.glob("unet-*"):
            tensors = load_tensors(unet)[0]
            tensors.pop("out.2.bias")
            save_tensors(unet, {**tensors, "extra": tensors["out.0.bias"]}, metadata)
        return "unet-0000002", "missing: out.2.bias; unexpected: extra"
    elif kind == "start beyond the chain":
        config["inference"]["rounds"][0]["start"] = 20
        for unet in folder.glob("unet-*"):
            save_tensors(unet, load_tensors(unet)[0], {**metadata, "config": json.dumps(config)})
        return "", "start index 20"
    elif kind == "unknown key":
        config["unet"]["depth"] = 3
        words = "depth"
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
        return path.name, "safetensors"
    save_tensors(path, tensors, {**metadata, "config": json.dumps(config)})
    return path.name, words


@pytest.mark.parametrize("kind", [
    "NaN", "other shape", "other architecture", "start beyond the chain", "unknown key", "truncated",
])
def test_infer_refuses_weights_that_cannot_be_used(folders, tmp_path, kind):
    shutil.copytree(folders / "run" / "weights", tmp_path / "weights")
    name, words = spoil_weights(tmp_path / "weights", kind)
    done = run_main("infer", "--input_path", folders / "test", "--img_path", folders / "train",
                    "--output_path", tmp_path / "out", "--checkpoint", tmp_path / "weights", "--rounds", 1)
    assert done.returncode == 2 and name in done.stderr and words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("out/*.jpg"))


@pytest.mark.parametrize("spoil, words", [
    (lambda test: (test / "label_to_img.json").unlink(), "label_to_img.json"),
    (lambda test: (test / "label_to_img.json").write_text("{"), "label_to_img.json"),
    (lambda test: [p.unlink() for p in test.glob("*/*.png")], "PNG"),
])
def test_infer_refuses_a_test_folder_that_is_none(folders, broken_test, tmp_path, spoil, words):
    spoil(broken_test[0])
    done = infer(folders, tmp_path / "out", test=broken_test[0])
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options, words", [
    (("--rounds", 0), "rounds 0"),
    (("--quality", 101), "quality 101"),
    (("--batch", 0), "batch 0"),
    (("--batch", "few"), "few: expected a number or auto"),
    (("--steps", 3), "steps 3"),
    (("--condition-cache-mb", -1), "condition_cache_mb -1"),
    (("--color-transfer", "sepia"), "sepia"),
    (("--checkpoint", "no-such-folder"), "no-such-folder"),
    (("--overview", "sheet"), "sheet"),
])
def test_infer_refuses_settings_that_cannot_be_used(folders, tmp_path, options, words):
    done = infer(folders, tmp_path / "out", *options)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*.jpg"))


def test_infer_refuses_an_output_folder_that_cannot_be_written(folders, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = infer(folders, tmp_path / "file" / "out")
    assert done.returncode == 2 and "cannot write there" in done.stderr


def test_package_submission_takes_the_pictures(folders, results, tmp_path):
    shutil.copytree(results, tmp_path / "results", ignore=shutil.ignore_patterns("steps"))
    done = run_main("package", "--input_path", folders / "test", "--results", tmp_path / "results",
                    "--output", tmp_path / "result.zip")
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "result.zip") as archive:
        assert sorted(archive.namelist()) == sorted(p.name for p in results.glob("*.jpg"))


def test_the_exported_mean_is_the_ensemble(folders, results, tmp_path):
    shutil.copytree(folders / "run", tmp_path / "run", ignore=shutil.ignore_patterns("weights"))
    done = run_main("train", "export", "--config", folders / "tiny.yaml", "--data", folders / "train", "--run",
                    tmp_path / "run", "--average")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "run" / "weights").iterdir()) == [
        "autoencoder.safetensors", "unet-mean.safetensors"]
    mean = load_tensors(tmp_path / "run" / "weights" / "unet-mean.safetensors")[0]
    kept = [load_tensors(folders / "run" / f"unet-000000{step}.safetensors")[0] for step in (2, 4)]
    for name, value in mean.items():
        np.testing.assert_allclose(value, (kept[0][name] + kept[1][name]) / 2, rtol=1e-3, atol=1e-6)


def test_a_training_that_was_stopped_is_exported_as_it_stands(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run, ignore=shutil.ignore_patterns("weights"))
    (run / "unet-0000004.safetensors").unlink()
    (tmp_path / "recipe.yaml").write_text(json.dumps({**CONFIG, "inference": {"rounds": [{"start": 1}]}}))
    arguments = "train", "export", "--config", tmp_path / "recipe.yaml", "--data", folders / "train", "--run", run
    done = run_main(*arguments)
    assert done.returncode == 2 and not (run / "weights").exists()
    assert "unet-0000004.safetensors: no such file" in done.stderr and "--latest" in done.stderr
    done = run_main(*arguments, "--latest", "--average")
    assert done.returncode == 2 and "leave out --average" in done.stderr
    done = run_main(*arguments, "--latest")
    assert done.returncode == 0, done.stderr
    made = load_checkpoint(run / "weights" / "unet-0000003.safetensors")
    latest = load_tensors(run / "unet-latest.safetensors")[0]
    assert all(np.array_equal(made.tensors[name], value.astype(np.float16)) for name, value in latest.items())
    assert [r.start for r in made.config.inference.rounds] == [1]  # the configuration's recipe


def test_train_goes_on_where_it_is_and_refuses_to_overwrite(folders):
    arguments = ("train", "all", "--config", folders / "tiny.yaml", "--data", folders / "train", "--run",
                 folders / "run")
    again = run_main(*arguments)
    assert again.returncode == 2 and "--resume" in again.stderr
    resumed = run_main(*arguments, "--resume")
    assert resumed.returncode == 0 and str(folders / "run" / "weights") in resumed.stdout, resumed.stderr


@pytest.mark.parametrize("config, data, words", [
    ("unett: {}", "train", "unett"),
    ("train_unet: {steps: many}", "train", "many"),
    ("train_unet: {steps: 3}", "train", "keep_at"),
    ("train_unet: {steps: 3, keep_at: [3]}", "absent", "absent"),
])
def test_train_refuses_bad_configurations_and_folders(folders, tmp_path, config, data, words):
    (tmp_path / "bad.yaml").write_text(config)
    done = run_main("train", "all", "--config", tmp_path / "bad.yaml", "--data", folders / data, "--run",
                    tmp_path / "run")
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_train_names_a_photo_and_label_map_of_different_size(folders, tmp_path):
    shutil.copytree(folders / "train", tmp_path / "train")
    photo = sorted((tmp_path / "train" / "imgs").iterdir())[0]
    Image.new("RGB", (70, 48)).save(photo)
    (tmp_path / "run").mkdir()
    shutil.copy(folders / "run" / "autoencoder.safetensors", tmp_path / "run")
    done = run_main("train", "latents", "--config", folders / "tiny.yaml", "--data", tmp_path / "train", "--run",
                    tmp_path / "run")
    assert done.returncode == 2 and photo.name in done.stderr and "70x48" in done.stderr
    assert not (tmp_path / "run" / "latents" / "latents.npy").exists()
