"""Converts weights of other programs into a checkpoint of jiidm, without running anything that the file holds.

  jiidm convert vq-f4.ckpt autoencoder.safetensors
  jiidm convert latest_net_G.pth gaugan.safetensors --encoder latest_net_E.pth --baseline 256x256
  jiidm convert ema_0.9999_266000.pt unet.safetensors --step 266000 --config autoencoder.safetensors --half

Reads PyTorch's .pt, .pth and .ckpt (also Lightning's, of latent diffusion), Jittor's .pkl, and safetensors. PyTorch is
not needed. Anything in a file other than tensors and plain containers is refused by name.
"""
import argparse
from pathlib import Path


def parse_arguments():
    """Reads the command line; ends with an error for options that contradict each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="INPUT", help="the file of weights")
    parser.add_argument("output", type=Path, metavar="OUTPUT.safetensors", nargs="?", help="the checkpoint to write")
    parser.add_argument("--kind", choices=("autoencoder", "unet"), help="network to take where the file holds both")
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="YAML file or checkpoint of jiidm, for what the shapes do not show (default: the "
                             "paper's values)")
    parser.add_argument("--ema", action="store_true", help="take the averaged copy of the weights")
    parser.add_argument("--half", action="store_true", help="write float16, not float32")
    parser.add_argument("--step", type=int, metavar="N", help="training step (default: the one in the file, or 0)")
    parser.add_argument("--baseline", metavar="WIDTHxHEIGHT",
                        help="INPUT is a generator of GauGAN or CLADE for pictures of this size (published: 256x256)")
    parser.add_argument("--encoder", type=Path, metavar="FILE", help="with --baseline: the file of its style encoder")
    parser.add_argument("--upsampling", type=int, metavar="N",
                        help="with --baseline: doublings of the size, 5 (published as \"normal\") or 6 (\"more\") "
                             "(default: 5)")
    parser.add_argument("--inspect", action="store_true", help="only print what the file holds")
    arguments = parser.parse_args()
    if (arguments.output is None) != arguments.inspect:
        parser.error("give OUTPUT.safetensors, or --inspect without it")
    if arguments.step is not None and arguments.step < 0:
        parser.error("--step: expected a number of at least 0")
    useless = ("kind", "config", "ema", "inspect") if arguments.baseline else ("encoder", "upsampling")
    given = ", ".join(f"--{name}" for name in useless if getattr(arguments, name) is not parser.get_default(name))
    if given:
        parser.error(f"{given}: not with --baseline" if arguments.baseline else f"{given}: only with --baseline")
    return arguments


def main():
    """Prints what the file holds, and writes the checkpoint."""
    arguments = parse_arguments()
    if arguments.baseline:
        _convert_baseline(arguments)
        return

    from jiidm.foreign.archive import open_weights
    from jiidm.foreign.convert import list_tensors, plan_conversion, write_checkpoint

    weights = open_weights(arguments.input)
    print(f"{arguments.input}: {weights.format}, {len(weights.tensors)} tensors")
    if arguments.inspect:
        print(*list_tensors(weights), sep="\n")
    if arguments.inspect and weights.native:
        print(_describe(arguments.input))
        return
    conversion = plan_conversion(weights, arguments.kind, arguments.config, arguments.ema, arguments.step)
    print(*conversion.report(), sep="\n")
    if not arguments.inspect:
        write_checkpoint(conversion, arguments.output, arguments.half)
        print(f"{arguments.output}: written, {arguments.output.stat().st_size / 2**20:.1f} MiB")


def _describe(path):
    """A line on a checkpoint of jiidm; for a baseline's also the size of its pictures."""
    from jiidm.baselines.config import MODELS, baseline_checkpoint
    from jiidm.checkpoint import KINDS, open_checkpoint, open_tensors

    tensors, metadata = open_tensors(path)
    kind = metadata.get("kind")
    if kind in KINDS:
        return open_checkpoint(path).describe()
    if kind not in MODELS:
        return f"{path}: {kind}, step {metadata.get('step', 'unknown')}"
    checkpoint = baseline_checkpoint(path, tensors, metadata)
    return f"{checkpoint.describe()}; pictures of {checkpoint.config.image.width}x{checkpoint.config.image.height}"


def _convert_baseline(arguments):
    """Writes the checkpoint of a generator of GauGAN or CLADE."""
    from jiidm.baselines.convert import convert_published
    from jiidm.system.errors import InputError

    sides = arguments.baseline.split("x")
    if len(sides) != 2 or not all(side.isdigit() for side in sides):
        raise InputError(f"--baseline {arguments.baseline}: expected the pictures' size, such as 256x256")
    config = convert_published(arguments.input, arguments.output, arguments.encoder, *map(int, sides),
                               5 if arguments.upsampling is None else arguments.upsampling, arguments.half,
                               arguments.step or 0)
    print(f"{arguments.output}: {config.generator.model}, {config.generator}")
