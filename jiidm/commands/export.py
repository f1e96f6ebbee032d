"""Writes the networks as ONNX files, which run without Jittor: on Windows, macOS, phones, in a browser, from C++.

  jiidm export default -o onnx
  cd onnx && python -m jiidm_onnx draw MASK.png STYLE.jpg -o picture.jpg

The first line needs the extra `onnx` (pip install '.[onnx]'), the second only numpy, pillow and onnxruntime.
"""
import argparse
from pathlib import Path


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="+", metavar="WEIGHTS",
                        help="default (the package's own), a folder of checkpoints, or the files of one run")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="the folder to write")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32",
                        help="number format that the networks compute in; fp16 is for GPUs (default: fp32)")
    parser.add_argument("--ensemble", nargs="+", type=float, metavar="W",
                        help="a relative weight for each UNet in the mean (default: all equal)")
    return parser.parse_args()


def main():
    """Writes the folder and says what is in it."""
    arguments = parse_arguments()

    from jiidm.export.folder import export

    weights = arguments.weights if len(arguments.weights) > 1 else arguments.weights[0]
    if Path(arguments.weights[0]).is_file():
        weights = arguments.weights
    for path in export(weights, arguments.output, arguments.precision, arguments.ensemble or True):
        if path.suffix in (".onnx", ".json"):
            print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
