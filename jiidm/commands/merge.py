"""Averages checkpoints of one run into one: the paper's model ensemble, computed once instead of at every start.

  jiidm merge unet-0176000.safetensors unet-0266000.safetensors -o unet-mean.safetensors --weights 1 2

The result says what it was made from: `jiidm convert --inspect unet-mean.safetensors`.
"""
import argparse
from pathlib import Path


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT.safetensors")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.safetensors", help="the file to write")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W",
                        help="a relative weight for each checkpoint (default: all equal)")
    return parser.parse_args()


def main():
    """Writes the average and says what it was made from."""
    arguments = parse_arguments()

    from jiidm.inference.ensemble import merge_checkpoints

    merged = merge_checkpoints(arguments.checkpoints, arguments.output, arguments.weights or True)
    print(merged.describe())
