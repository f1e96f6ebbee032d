"""What few steps change in the picture: DPM-Solver++ against the paper's first round of 300 DDIM steps.

For each label map of a test folder in the contest's layout: the PSNR between the pictures of both samplers, and the
correlation of each with its style reference (cv2.compareHist over joint RGB histograms of 8 x 8 x 8 bins).
"""
import argparse
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.measuring import machine, row, write_report
from jiidm import Generator
from jiidm.commands.entry import run_tool
from jiidm.data.folders import TestFolder
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.evaluation.metrics import style_correlation
from jiidm.system.errors import InputError

ROUND = {"guidance": 3.5, "respacing": "ddim500", "start": 300}  # the paper's first
SAMPLERS = (
    ("DDIM, 300 steps", ROUND, {}),
    ("DPM-Solver++, 20 steps", ROUND, {"sampler": "dpmpp", "steps": 20}),
    ("DPM-Solver++, 10 steps", ROUND, {"sampler": "dpmpp", "steps": 10}),
    ("DDIM, 30 steps", {**ROUND, "respacing": "ddim50", "start": 30}, {}),
)


def main():
    """Makes the pictures and writes few_steps.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", type=Path, required=True, help="test folder with label_to_img.json")
    parser.add_argument("--img_path", type=Path, required=True, help="folder of the style photos")
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--limit", type=int, help="take this many label maps alone")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    items = TestFolder(args.input_path, args.img_path).items[: args.limit]
    if not items:
        raise InputError(f"{args.input_path}: no label map with a reference; expected at least one")
    generator = Generator.from_checkpoint(args.checkpoint)
    styles = [fit_photo(read_photo(i.reference), generator.width, generator.height) for i in items]
    made, rows = {}, []
    for name, settings, options in SAMPLERS:
        start, pictures = time.perf_counter(), []
        for k in range(0, len(items), 8):
            part = slice(k, k + 8)
            names = [Path(i.name).stem for i in items[part]]
            pictures += generator.infer([i.mask for i in items[part]], styles[part], rounds=[settings], names=names,
                                        recipe={**options, "final_color_transfer": ""})
        seconds = (time.perf_counter() - start) / len(items)
        made[name] = [np.asarray(p) for p in pictures]
        rows.append(row(f"{name}: style correlation", np.mean([
            style_correlation(p, s) for p, s in zip(made[name], styles, strict=True)
        ]), "", note=f"{len(items)} label maps, {seconds:.2f} s an image"))
        if len(made) > 1:
            psnr = [cv2.PSNR(a, b) for a, b in zip(made[SAMPLERS[0][0]], made[name], strict=True)]
            rows.append(row(f"{name}: PSNR to {SAMPLERS[0][0]}", np.mean(psnr), "dB",
                            note=f"lowest {min(psnr):.1f}, highest {max(psnr):.1f}"))
    print(write_report(args.output, "few_steps", "Few steps against many", rows, machine()))
    return 0


if __name__ == "__main__":
    run_tool(main)
