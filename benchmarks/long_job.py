"""Measures whether memory grows with the number of pictures, in a long contest job with tiny networks."""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import machine, resident_gb, write_files
from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.commands.entry import run_tool
from jiidm.config import AutoencoderConfig, Config, ImageConfig, InferenceConfig, RoundConfig, UNetConfig
from jiidm.contest.job import ContestJob, make_pictures
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import TrainingFolder, write_test_folder, write_training_folder
from jiidm.generator import Generator
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder
from jiidm.system.runtime import device_name, jt

WIDTH, HEIGHT = 96, 64
CONFIG = Config(
    image=ImageConfig(WIDTH, HEIGHT),
    autoencoder=AutoencoderConfig(ch=16, num_res_blocks=1, n_embed=64, norm_groups=4),
    unet=UNetConfig(model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,),
                    head_channels=16, spade_channels=8, norm_groups=4),
    inference=InferenceConfig((RoundConfig(2.0, "ddim20", 5), RoundConfig(2.0, "ddim20", 3))),
)
EVERY = 20  # images between two measurements
WARM = 40  # images before memory is expected to be steady


def write_inputs(folder, count):
    """Writes a training folder, a test folder of `count` masks, and checkpoints of tiny networks."""
    drawn = [draw_landscape(seed, WIDTH, HEIGHT) for seed in range(20)]
    write_training_folder(folder / "train", ((f"{i:03d}", *pair) for i, pair in enumerate(drawn)))
    masks = ((f"{i:05d}", np.roll(drawn[i % len(drawn)][1], i, 1)) for i in range(count))
    write_test_folder(folder / "test", masks, TrainingFolder(folder / "train"))
    output_folder(folder / "weights")
    for kind, network in (("autoencoder", Autoencoder(CONFIG.autoencoder)), ("unet", UNet(CONFIG.unet))):
        save_checkpoint(folder / "weights" / f"{kind}.safetensors", kind, arrays_of(network), CONFIG, 1)


def watch_generators(rows):
    """Makes every `Generator` append a row of measurements to `rows` after each `EVERY` pictures."""
    infer, images = Generator.infer, 0

    def infer_and_measure(self, masks, *arguments, **settings):
        nonlocal images
        pictures = infer(self, masks, *arguments, **settings)
        before, images = images, images + len(pictures)
        if images // EVERY > before // EVERY:
            live = jt.liveness_info()
            rows.append({
                "images": images, "resident_mb": resident_gb() * 1e3,
                "cuda_mb": jt.get_mem_info().total_cuda_used / 1e6, "variables": live["lived_vars"],
                "operations": live["lived_ops"],
            })
        return pictures

    Generator.infer = infer_and_measure


def fit_growth(rows, column):
    """The growth of `column` a picture, after the first WARM: the slope of a line through the rows."""
    late = [(row["images"], row[column]) for row in rows if row["images"] >= WARM]
    return float(np.polyfit(*zip(*late, strict=True), 1)[0])


def write_job_report(folder, rows, about):
    """Writes long_job.json and long_job.md into the folder and returns the Markdown."""
    columns = {"images": "images", "resident_mb": "resident MB", "cuda_mb": "CUDA MB", "variables": "Jittor variables",
               "operations": "Jittor operations"}
    lines = ["# Memory of a long job", "", *(f"- {key}: {value}" for key, value in about.items()), "",
             f"| {' | '.join(columns.values())} |", "| ---: | ---: | ---: | ---: | ---: |",
             *(f"| {' | '.join(f'{row[name]:.1f}'.removesuffix('.0') for name in columns)} |" for row in rows)]
    return write_files(folder, "long_job", "\n".join(lines) + "\n", rows, about)


def main():
    """Runs the job and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=240, help="images (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images at a time (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    if args.count < WARM + 2 * EVERY:
        raise InputError(f"--count {args.count}: expected at least {WARM + 2 * EVERY}")
    rows = []
    watch_generators(rows)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_inputs(folder, args.count)
        start = time.perf_counter()
        job = ContestJob(folder / "test", folder / "train", folder / "out", WIDTH, HEIGHT, batch=args.batch)
        problems = make_pictures(job, folder / "weights", rounds=2)
        seconds = time.perf_counter() - start
    if problems:
        raise InputError(f"{len(problems)} images could not be made, the first one: {problems[0]}")
    about = {
        **machine(), "device": device_name(), "job": f"{args.count} images of {WIDTH}x{HEIGHT}, {args.batch} at a time",
        "seconds": round(seconds, 1),
        f"growth after {WARM} images": f"{fit_growth(rows, 'resident_mb'):.4f} MB of resident memory and "
                                       f"{fit_growth(rows, 'variables'):.4f} Jittor variables an image",
    }
    print(write_job_report(args.output, rows, about))


if __name__ == "__main__":
    run_tool(main)
