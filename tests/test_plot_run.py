"""tools/plot_run.py: which columns are drawn where, and the PNG."""
import math

import numpy as np
import pytest
from helpers import refused, run_main, run_tool
from PIL import Image

from jiidm.commands import plot as plot_run

UNET = ("step", "mse", "bound", "mse_quarter_1", "mse_quarter_2", "mse_quarter_3", "mse_quarter_4", "gradient_norm",
        "learning_rate", "samples_per_second")
AUTOENCODER = ("step", "reconstruction", "codebook", "generator", "discriminator", "codes_used", "psnr", "ssim",
               "learning_rate", "samples_per_second")


def write_table(path, columns, rows=40, zero=()):
    """Writes a table in which column number c has the value (c + 1) / step."""
    lines = [",".join(columns)]
    for step in range(10, 10 * rows + 1, 10):
        lines.append(",".join([str(step), *("0" if name in zero else f"{(c + 1) / step:.6g}"
                                             for c, name in enumerate(columns[1:], 1))]))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_find_their_panels(tmp_path):
    table = plot_run.read_table(write_table(tmp_path / "unet.csv", UNET))
    assert [(title, columns) for title, columns, *_ in plot_run.panels_of(table)] == [
        ("losses", ["mse", "bound"]),
        ("loss by quarter of the timesteps", [f"mse_quarter_{i}" for i in (1, 2, 3, 4)]),
        ("gradient norm", ["gradient_norm"]), ("learning rate", ["learning_rate"]),
        ("samples a second", ["samples_per_second"]),
    ]
    table = plot_run.read_table(write_table(tmp_path / "a.csv", AUTOENCODER, zero=("generator", "discriminator")))
    assert [(title, columns) for title, columns, *_ in plot_run.panels_of(table)] == [
        ("losses", ["reconstruction", "codebook"]), ("PSNR, dB", ["psnr"]), ("SSIM", ["ssim"]),
        ("share of the codes in use", ["codes_used"]), ("learning rate", ["learning_rate"]),
        ("samples a second", ["samples_per_second"]),
    ]


@pytest.mark.parametrize("name, columns, panels", [
    ("generator", ("feature_matching", "generator", "discriminator", "divergence"), [
        ("losses", ["feature_matching", "divergence"]), ("adversarial losses", ["generator", "discriminator"])]),
    ("segmenter", ("cross_entropy", "mask_accuracy"), [
        ("losses", ["cross_entropy"]), ("mask accuracy, mean IoU", ["mask_accuracy"])]),
    ("segmenter-validation", ("mask_accuracy", "mean_iou"), [
        ("mask accuracy, mean IoU", ["mask_accuracy", "mean_iou"])]),
])
def test_tables_of_the_other_trainings(tmp_path, name, columns, panels):
    table = plot_run.read_table(write_table(tmp_path / f"{name}.csv", ("step", *columns)))
    assert name in plot_run.TABLES
    assert [(title, found) for title, found, *_ in plot_run.panels_of(table)] == panels


def test_smoothing():
    assert plot_run.smoothed([3.0, 3.0, 3.0], 10) == pytest.approx([3, 3, 3])  # no bias towards zero at the start
    values = plot_run.smoothed([0.0, 1.0], 2)  # each row weighs half of the one after it
    assert values == pytest.approx([0, 1 / 1.5])
    gap = plot_run.smoothed([math.nan, 2.0, math.nan, 2.0], 4)
    assert math.isnan(gap[0]) and gap[1:] == pytest.approx([2, 2, 2])


def test_a_table_that_is_being_written(tmp_path):
    path = write_table(tmp_path / "unet.csv", UNET, 3)
    whole = plot_run.read_table(path)
    with open(path, "a") as file:
        file.write("40,0.1,0.")
    assert plot_run.read_table(path).keys() == whole.keys()
    assert np.array_equal(plot_run.read_table(path)["mse"], whole["mse"])


def test_tables_that_are_refused(tmp_path):
    for text, words in (("", "no table"), ("a,b\n1,2\n", "no table"), ("step,mse\n", "no row yet"),
                        ("step,mse\n10\n", "no row yet"), ("step,mse\n10\n20,1\n", "line 2 has 1 values"),
                        ("step,mse\n10,high\n", "column mse")):
        (tmp_path / "unet.csv").write_text(text)
        refused(lambda: plot_run.read_table(tmp_path / "unet.csv"), "unet.csv", words)
    (tmp_path / "unet.csv").write_bytes(b"\xff\xfe\x00step")
    refused(lambda: plot_run.read_table(tmp_path / "unet.csv"), "cannot be read")


def test_curves_are_drawn_where_the_numbers_are(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots")
    tables = {"autoencoder": plot_run.read_table(write_table(tmp_path / "a.csv", AUTOENCODER)),
              "unet": plot_run.read_table(write_table(tmp_path / "u.csv", UNET))}
    figure = plot_run.draw(tables, "run")
    axes = {(part, place.get_title()): place for part, of_stage in enumerate(figure.subfigs)
            for place in of_stage.axes if place.get_title()}
    assert len(axes) == 7 + 5
    raw, smooth = axes[1, "gradient norm"].lines
    assert np.array_equal(raw.get_ydata(), tables["unet"]["gradient_norm"])
    assert np.array_equal(raw.get_xdata(), tables["unet"]["step"])
    assert np.ptp(smooth.get_ydata()) < np.ptp(raw.get_ydata())
    assert axes[1, "losses"].get_yscale() == "log"
    assert [text.get_text() for text in axes[0, "losses"].get_legend().get_texts()] == ["reconstruction", "codebook"]


def test_the_tool(tmp_path):
    pytest.importorskip("matplotlib", reason="the extra plots")
    write_table(tmp_path / "unet.csv", UNET)
    done = run_main("plot", tmp_path, "--output", tmp_path / "new" / "curves.png")
    assert done.returncode == 0 and "curves of unet" in done.stdout, done.stderr
    picture = np.asarray(Image.open(tmp_path / "new" / "curves.png").convert("RGB"))
    assert picture.shape[1] == 1650 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    write_table(tmp_path / "generator.csv", ("step", "generator", "discriminator"))
    done = run_main("plot", tmp_path)
    assert done.returncode == 0 and "curves of unet, generator" in done.stdout, done.stderr
    (tmp_path / "generator.csv").unlink()
    one_row = write_table(tmp_path / "unet.csv", UNET, 1)
    assert run_main("plot", one_row.parent).returncode == 0 and (tmp_path / "curves.png").exists()


def test_the_tool_refuses(tmp_path):
    empty, modules = tmp_path / "empty", tmp_path / "modules"
    (modules / "matplotlib").mkdir(parents=True)
    empty.mkdir()
    (modules / "matplotlib" / "__init__.py").write_text("raise ImportError('no such module')\n")
    write_table(tmp_path / "unet.csv", UNET)
    for arguments, words in (((tmp_path / "none",), "no such folder"), ((empty,), "none of autoencoder.csv"),
                             ((tmp_path, "--output", "curves.jpg"), "ends in .png"),
                             ((tmp_path,), "pip install matplotlib")):
        # a stand-in for matplotlib needs a process of its own
        done = run_tool("plot_run", *arguments, modules=modules) if "pip" in words else run_main("plot", *arguments)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and words in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
