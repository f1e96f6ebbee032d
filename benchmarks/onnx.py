"""Exports weights to ONNX and compares pictures and times with Jittor's, on the example label maps.

  python -m benchmarks.onnx

Both draw the same pictures from the same seeds, in turn, with one thread a core. Run it on a quiet machine.
"""
import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import ROOT, machine, row, write_report
from jiidm.commands.entry import run_tool
from jiidm.export.folder import export
from jiidm.generator import Generator
from jiidm_onnx import Generator as OnnxGenerator

_SETTINGS = {
    "the recipe": {},
    "Reinhard's transfer, DPM-Solver++ of 8 steps": {
        "color_transfer": "reinhard", "recipe": {"sampler": "dpmpp", "steps": 8, "final_color_transfer": ""}},
}


def main():
    """Measures and writes onnx.md and onnx.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="default", help="folder of weights (default: the package's)")
    parser.add_argument("--limit", type=int, default=6, help="pictures (default: %(default)s)")
    parser.add_argument("--precision", default="fp32", help="fp32 or fp16 (default: fp32)")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), help="folder of the report")
    args = parser.parse_args()
    pairs = list(json.loads((ROOT / "examples/test/label_to_img.json").read_text()).items())[:args.limit]
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        files = export(args.checkpoint, folder, args.precision)
        size = sum(path.stat().st_size for path in files if path.suffix == ".onnx") / 1e6
        theirs, ours = Generator.from_checkpoint(args.checkpoint, "cpu"), OnnxGenerator(folder, cores)
        rows = [row("all ONNX files", size, "MB", note=args.precision)]
        for name, settings in _SETTINGS.items():
            rows += _compare(name, settings, theirs, ours, pairs)
    print(write_report(args.output, "onnx", "ONNX", rows, {**machine(), "threads": cores}))
    return 0


def _compare(name, settings, theirs, ours, pairs):
    """The rows of a setting: differences from Jittor's pictures, and seconds a picture."""
    times, differences = ([], []), []
    for number, (mask, style) in enumerate([pairs[0], *pairs]):  # the first one compiles and loads
        pictures = []
        for generator, seconds in zip((ours, theirs), times, strict=True):
            start = time.perf_counter()
            pictures.append(np.asarray(generator.infer(
                ROOT / "examples/test/labels" / mask, ROOT / "examples/train/imgs" / style, **settings), np.int16))
            if number:
                seconds.append(time.perf_counter() - start)
        if number:
            differences.append(np.abs(pictures[0] - pictures[1]))
    apart = np.stack(differences)
    note = f"{len(pairs)} pictures; largest {apart.max()}, {100 * (apart > 3).mean():.2f} % of the values beyond 3"
    own, other = map(statistics.median, times)
    return [row(f"{name}: mean difference", float(apart.mean()), "grey levels", note=note),
            row(f"{name}: a picture", own, "s", "Jittor", other)]


if __name__ == "__main__":
    run_tool(main)
