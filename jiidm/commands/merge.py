"""Averages checkpoints of one run into one: the paper's model ensemble, made once instead of at every start.

  python tools/merge.py unet-0176000.safetensors unet-0266000.safetensors -o unet-mean.safetensors --weights 1 2

The result says what it was made from: `python tools/convert.py --inspect unet-mean.safetensors`.
"""
import argparse
from pathlib import Path


def main():
    """Reads the arguments and writes the mean."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT.safetensors")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W",
                        help="one number for each checkpoint, in proportion (default: all equal)")
    arguments = parser.parse_args()

    from jiidm.inference.ensemble import merge_checkpoints

    merged = merge_checkpoints(arguments.checkpoints, arguments.output, arguments.weights or True)
    print(merged.describe())
