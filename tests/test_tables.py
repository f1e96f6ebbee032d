"""The comparison with GauGAN and CLADE, and that of the training's options: rows, differences, costs."""
import dataclasses
import json
import os
import sys

import numpy as np
import pytest
from helpers import TINY, refused, run_main, write_random_weights
from PIL import Image

from benchmarks import autoencoder_options, tables, training_options
from jiidm import Generator, load
from jiidm.baselines.config import BaselineRun, DiscriminatorConfig, GeneratorConfig, GeneratorTrainingConfig
from jiidm.baselines.networks import Baseline, save_baseline
from jiidm.checkpoint import Source, arrays_of, load_checkpoint, load_into, save_checkpoint
from jiidm.config import ImageConfig, InferenceConfig, RoundConfig, to_dict
from jiidm.contest.job import ContestJob, make_pictures
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TestFolder as Masks
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.data.pictures import from_pixels, read_photo, to_pixels
from jiidm.evaluation.measure import Protocol, evaluate, find_judge
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.evaluation.weights import save_segmenter
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.runtime import jt
from jiidm.training.stages import Stages

NETWORK = SegformerConfig(29, (8, 16), (1, 1), (1, 2), (2, 1), 2, 16, 64, 48)
pytestmark = [pytest.mark.bench, pytest.mark.filterwarnings("ignore:.*Frechet")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """train/, test/ with 3 label maps, iidm/ and gaugan/ of random weights, config, and the file of a segmenter."""
    root = tmp_path_factory.mktemp("tables")
    write_training_folder(root / "train", ((f"style{i}", *draw_landscape((1, i), 48, 32)) for i in range(4)))
    scenes = ((f"mask{i}", draw_landscape((2, i), 48, 32)[1]) for i in range(3))
    write_test_folder(root / "test", scenes, TrainingFolder(root / "train"))
    config = dataclasses.replace(
        TINY, image=ImageConfig(48, 32),
        inference=InferenceConfig((RoundConfig(3.0, "ddim20", 3), RoundConfig(3.0, "ddim20", 2)),
                                  final_color_transfer="transport", final_color_share=0.5),
        train_autoencoder=dataclasses.replace(TINY.train_autoencoder, steps=8, batch=2, crop=24),
        train_unet=dataclasses.replace(TINY.train_unet, batch=2),
    )
    jt.set_global_seed(1, False)
    save_segmenter(root / "segmenter.safetensors", arrays_of(Segformer(NETWORK)), NETWORK, 0)
    write_random_weights(root / "iidm", config, (4,))
    run = BaselineRun(ImageConfig(48, 32), GeneratorConfig("spade", 29, 2, 4, 4, 6, 2, 16),
                      DiscriminatorConfig(4, 2, 1), GeneratorTrainingConfig(steps=6, batch=2))
    (root / "gaugan").mkdir()
    save_baseline(root / "gaugan" / "gaugan.safetensors", arrays_of(Baseline(run)), run, 6)
    (root / "config.yaml").write_text(json.dumps(to_dict(config)))
    return root


def run_table(tool, place, output, monkeypatch, *options):
    """Runs a tool's main with the folders of `place` and returns the kept figures and the results."""
    folders = {"--labels": "test", "--references": "train", "--segmenter": "segmenter.safetensors"}
    given = [text for name, value in folders.items() for text in (name, str(place / value))]
    monkeypatch.setattr(sys, "argv", [tool.__file__, *given, "--resamples", "40", "--output", str(output),
                                      "--docs", str(output / "docs"), *map(str, options)])
    tool.main()
    return json.loads((output / "ablation.json").read_text()), (output / "docs" / "measurements.md").read_text()


def test_comparison(place, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i in range(3):
        Image.fromarray(draw_landscape((2, i), 48, 32)[0]).save(tmp_path / "photos" / f"mask{i}.jpg")
    kept, text = run_table(
        tables, place, tmp_path, monkeypatch, "--model", f"GauGAN={place / 'gaugan'}", "--model",
        f"IIDM={place / 'iidm'}", "--real", tmp_path / "photos", "--minutes", "GauGAN=30")
    found = kept["sections"]["comparison"]
    rows = {row["name"]: row for row in found["rows"]}
    assert list(rows) == [
        "real photos", "GauGAN", "GauGAN, colour transfer at the end", "IIDM, one round", "IIDM, full"]
    judged = {name: row["figures"].pop("judge_of_real", None) for name, row in rows.items()}
    if find_judge(True)[0] is None:
        assert set(judged.values()) == {None} and "not measured" in found["protocol"]["judge"]
    else:
        assert judged["real photos"][0] == 1 and 0 <= judged["IIDM, full"][0] < 1
        assert all(row["figures"].pop("sharpness_of_real")[0] > 0 for row in rows.values())
    # the figures are those of the pictures that infer makes
    for name, folder, settings in (
        ("GauGAN", "gaugan", {}), ("IIDM, full", "iidm", {}),
        ("IIDM, one round", "iidm", {"rounds": 1, "recipe": {"final_color_transfer": ""}}),
    ):
        generator, pictures = load(place / folder), tmp_path / name
        pictures.mkdir()
        for item in Masks(place / "test", place / "train").items:
            generator.infer(item.mask, item.reference, names=[item.mask.stem], **settings).save(
                pictures / f"{item.mask.stem}.png")
        figures = evaluate(pictures, place / "test", place / "train", segmenter=place / "segmenter.safetensors",
                           judge=False, protocol=Protocol(resamples=40, frechet_resamples=40)).sets["results"].figures
        assert rows[name]["figures"] == {key: pytest.approx(list(f), abs=1e-6) for key, f in figures.items()}
    assert not rows["IIDM, full"]["differences"]
    for name in ("GauGAN", "IIDM, one round"):
        values = [rows[row]["figures"]["style"][0] for row in (name, "IIDM, full")]
        assert rows[name]["differences"]["style"][0] == pytest.approx(values[0] - values[1])
    nearer = [rows[f"GauGAN{end}"]["figures"]["lab_mean"][0] for end in (", colour transfer at the end", "")]
    assert nearer[0] < nearer[1]
    costs = {cost["name"]: cost for cost in found["costs"]}
    assert list(costs) == ["GauGAN", "IIDM, one round", "IIDM, full"]
    assert costs["GauGAN"]["training"] == [[None, 1800]] and "| as given | 30 |" in text
    assert [steps for steps, _ in costs["IIDM, full"]["training"]] == [8, 5]
    for cost in costs.values():
        assert cost["parameters"] > 1000 and cost["seconds"] > 0 and 0.05 < cost["memory"] < 20
        assert all(seconds > 0 for _, seconds in cost["training"])
    assert "Differences to IIDM, full:" in text and "(comparison.jpg)" in text and str(place) not in text
    sheet = read_photo(tmp_path / "docs" / "comparison.jpg")
    assert sheet.shape[1] >= 6 * 48 and sheet.shape[0] >= 6 * 32 and sheet.std() > 10


def test_a_test_folder_is_made_by_the_model_that_is_asked_for(place, tmp_path):
    job = ContestJob(place / "test", place / "train", tmp_path / "out", 48, 32)
    refused(lambda: make_pictures(job, place / "gaugan", model="clade"), "is of gaugan", "expected clade")
    refused(lambda: make_pictures(job, place / "iidm", model="gaugan"), "is of iidm", "expected gaugan")
    assert not list((tmp_path / "out").iterdir())
    assert make_pictures(job, place / "gaugan", model="gaugan") == []
    generator = load(place / "gaugan")
    for item in Masks(place / "test", place / "train").items:
        made = Image.fromarray(read_photo(tmp_path / "out" / f"{item.mask.stem}.jpg"))
        expected = generator.infer(item.mask, item.reference, names=[item.mask.stem])
        # JPEG thins out the colours of pictures of random weights, which are noise
        greys = [np.asarray(picture.convert("L"), float).ravel() for picture in (made, expected)]
        assert made.size == expected.size and np.corrcoef(*greys)[0, 1] > 0.95



def test_a_model_that_was_not_trained_is_told_with_the_command(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run_main("infer", "--model", "clade", "--input_path", place / "test", "--img_path", place / "train",
                    "--output_path", tmp_path / "out")
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "runs/clade/weights" in done.stderr and "jiidm train clade" in done.stderr


@pytest.mark.parametrize("options, words", [
    (["--model", "GauGAN={place}/gaugan"], ("GauGAN", "expected weights of IIDM")),
    (["--model", "{place}/iidm"], ("NAME=FOLDER",)),
    (["--model", "a={place}/iidm", "--model", "a={place}/gaugan"], ("each with another name",)),
    (["--model", "real photos={place}/iidm"], ("each with another name",)),
    (["--model", "a={place}/iidm", "--minutes", "b=3"], ("--minutes b=3", "one of: a")),
    (["--model", "a={place}/iidm", "--minutes", "a=long"], ("--minutes a=long", "NAME=NUMBER")),
    (["--model", "a={place}/iidm", "--references", "{place}/train/imgs"], ("imgs",)),
])
def test_bad_comparisons_are_refused_before_pictures_are_made(place, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(tables, "make", None)
    refused(lambda: run_table(tables, place, tmp_path, monkeypatch, *(o.format(place=place) for o in options)), *words)


def test_figures_of_other_programs_are_kept(place, tmp_path, monkeypatch):
    text = json.dumps({"sections": {"modules": {"rows": []}}})
    (tmp_path / "ablation.json").write_text(text)
    refused(lambda: run_table(tables, place, tmp_path, monkeypatch, "--model", f"a={place / 'iidm'}"), "ablation.json",
            "not figures of this program")
    assert (tmp_path / "ablation.json").read_text() == text


def test_steps_before_a_fine_tuning_count(place, tmp_path):
    for folder, parents in (("one", (7,)), ("two", (7, 8))):
        (tmp_path / folder).mkdir()
        for file in (place / "iidm").glob("*.safetensors"):
            made = load_checkpoint(file)
            origin = ("fine-tuned", [Source("x", "0" * 64, step, 1.0) for step in parents])
            save_checkpoint(tmp_path / folder / file.name, made.kind, made.tensors, made.config, made.step, "float16",
                            *(origin if made.kind == "unet" else ()))
    parameters, training = tables.measure_training(tmp_path / "one", place / "train")
    assert [steps for steps, _ in training] == [8, 7 + 5] and parameters > 1000
    refused(lambda: tables.measure_training(tmp_path / "two", place / "train"), "unet-4.safetensors", "how long")


def test_a_process_that_dies_is_an_error():
    refused(lambda: tables.run_apart(os._exit, 1), "_exit of 1", "without a result")


def test_options_of_the_training(place, tmp_path, monkeypatch):
    """Each option is trained once; the second call only measures."""
    config = training_options.load_config(place / "config.yaml")
    run = tmp_path / "run"
    run.mkdir()
    (run / "autoencoder.safetensors").write_bytes((place / "iidm" / "autoencoder-0.safetensors").read_bytes())
    Stages(config, place / "train", run, resume="auto").latents()
    wider = training_options.Option("wider", {"unet": {"model_channels": 24}}, 1.5)
    monkeypatch.setitem(training_options.OPTIONS, "wide", wider)
    options = ("--run", run, "--data", place / "train", "--config", place / "config.yaml", "--steps", 2, "--only")
    with monkeypatch.context() as patch:
        patch.setattr(training_options, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        with pytest.raises(FileNotFoundError):  # of the figures, which it does not write
            run_table(training_options, place, tmp_path, monkeypatch, *options, "v", "--train-only")
    made = run / "options" / "v" / "unet-0000002.safetensors"
    stamp = made.stat().st_mtime_ns
    kept, text = run_table(training_options, place, tmp_path, monkeypatch, *options, "epsilon", "v", "wide")
    assert made.stat().st_mtime_ns == stamp
    rows = kept["sections"]["training"]["rows"]
    assert [row["name"] for row in rows] == ["noise, the paper's, 2 steps", "v, 2 steps", "wider, 3 steps"]
    assert not rows[0]["differences"]
    weights = [Generator.from_checkpoint(run / "options" / name / "weights") for name in ("epsilon", "v", "wide")]
    assert [g.config.diffusion.prediction for g in weights] == ["epsilon", "v", "epsilon"]
    assert [g.config.unet.model_channels for g in weights] == [16, 16, 24]
    assert [g.checkpoints[0].step for g in weights] == [2, 2, 3]
    assert "## Options of the training" in text and "Differences to noise, the paper's, 2 steps:" in text
    kept, text = run_table(training_options, place, tmp_path, monkeypatch, *options, "v", "--longer", 4, "--note",
                          "After lunch.")
    assert [row["name"] for row in kept["sections"]["longer"]["rows"]] == ["v, 4 steps"]
    assert kept["sections"]["training"]["rows"] == rows and "## Options of the training, longer" in text
    assert "longer trainings. After lunch.\n" in text
    assert (run / "longer" / "v" / "unet-0000004.safetensors").exists() and made.stat().st_mtime_ns == stamp
    monkeypatch.setitem(training_options.OPTIONS, "wide", wider._replace(keys={"unet": {"model_channels": 32}}))
    refused(lambda: run_table(training_options, place, tmp_path, monkeypatch, *options, "wide"), "unet-0000003",
            "another configuration (unet.model_channels)")
    weights = load_checkpoint(made.parent / "autoencoder.safetensors").tensors
    save_checkpoint(run / "autoencoder.safetensors", "autoencoder", weights, config, 9)
    refused(lambda: run_table(training_options, place, tmp_path, monkeypatch, *options, "v"), "not that of", "remove")
    refused(lambda: run_table(training_options, place, tmp_path, monkeypatch, *options[2:], "v", "--run",
                             place / "iidm"), "autoencoder.safetensors", "expected a run")


def test_autoencoders(place, tmp_path, monkeypatch):
    """The figures are those of the reconstructions of the photos, through the codebook."""
    (tmp_path / "real").mkdir()
    photos = {}
    for i in range(3):
        photos[f"mask{i}"] = draw_landscape((2, i), 48, 32)[0]
        Image.fromarray(photos[f"mask{i}"]).save(tmp_path / "real" / f"mask{i}.png")
    options = ("--run", tmp_path / "run", "--data", place / "train", "--config", place / "config.yaml",
               "--steps", 8, "--only", "plain", "discriminator")
    refused(lambda: run_table(autoencoder_options, place, tmp_path, monkeypatch, *options), "--real")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(autoencoder_options, "DEFAULT_WEIGHTS", place / "iidm")
    kept, text = run_table(autoencoder_options, place, tmp_path, monkeypatch, *options, "--real", tmp_path / "real",
                          "--also", place / "iidm" / "autoencoder-0.safetensors")
    rows = {row["name"]: row for row in kept["sections"]["autoencoder"]["rows"]}
    plain, adversarial, also, default = rows
    assert also.startswith("iidm, 16 channels, ") and rows[also]["figures"] == rows[default]["figures"]
    assert plain.startswith("16 channels, ") and plain.endswith(" 8 steps") and "7 steps" in adversarial
    assert default.startswith("of the default weights, 16 channels") and not rows[plain]["differences"]
    for name, file in ((plain, tmp_path / "run" / "autoencoders" / "plain" / "autoencoder.safetensors"),
                       (default, place / "iidm" / "autoencoder-0.safetensors")):
        checkpoint = load_checkpoint(file)
        network = Autoencoder(checkpoint.config.autoencoder)
        load_into(network, checkpoint.tensors, file)
        made = [to_pixels(network(jt.array(from_pixels(photo[None])), True)[0].numpy())[0] for photo in photos.values()]
        errors = [np.square(a.astype(float) - b).mean() for a, b in zip(photos.values(), made, strict=True)]
        psnr, low, high = rows[name]["figures"]["psnr"]
        assert psnr == pytest.approx(np.mean([10 * np.log10(255**2 / error) for error in errors]), abs=1e-3)
        assert low < psnr < high
    table = (tmp_path / "run" / "autoencoders" / "discriminator" / "autoencoder.csv").read_text().splitlines()
    column = table[0].split(",").index("discriminator")
    assert float(table[-1].split(",")[column]) > 0
    refused(lambda: run_table(autoencoder_options, place, tmp_path, monkeypatch, *options[:6], "--steps", 6, "--only",
                             "plain", "--real", tmp_path / "real"), "--steps 6", "at least 7")
    assert "## The autoencoder" in text and "| PSNR, dB | SSIM | mask accuracy |" in text
