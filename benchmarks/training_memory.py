"""Memory and time of a training step of the UNet: whole batch, micro-batches, recomputed blocks. One Markdown table.

Each row is measured in a process of its own, on made-up latents: the most memory that the process ever held (on a GPU,
that Jittor held there), and the median of three steps after one that compiles.
"""
import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

from jiidm.config import builtin_config, load_config


def child(config, batch, micro, blocks):
    """Prints bytes and seconds of a step."""
    from jiidm.training.plan import made_up_store, measured
    from jiidm.training.unet import UNetTrainer

    training = dataclasses.replace(config.train_unet, batch=batch, micro_batch=micro, checkpoint_blocks=blocks)
    config = dataclasses.replace(config, train_unet=training)
    seconds, memory = measured(UNetTrainer(config, made_up_store(config), None, Path("/"), []), 0)
    print(f"measured {memory} {seconds}")


def main():
    """Measures every setting and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="default", help="default, paper, or a YAML file")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--micro", type=int, default=4, help="size of the micro-batches")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(args.config if args.config.endswith((".yaml", ".yml")) else builtin_config(args.config))
    if args.child:
        batch, micro, blocks = map(int, args.child.split(","))
        return child(config, batch, micro, bool(blocks))
    print("| batch | micro-batch | blocks | memory, GB | s a step |\n| ---: | ---: | --- | ---: | ---: |")
    for batch in args.batches:
        for micro, blocks in ((0, 0), (0, 1), (args.micro, 0), (args.micro, 1)):
            if micro and micro >= batch:
                continue
            done = subprocess.run([sys.executable, __file__, "--config", args.config, "--child",
                                   f"{batch},{micro},{blocks}"], capture_output=True, text=True)
            line = next((line for line in done.stdout.splitlines() if line.startswith("measured")), None)
            if line is None:
                sys.exit(done.stderr)
            memory, seconds = map(float, line.split()[1:])
            print(f"| {batch} | {micro or batch} | {'recomputed' if blocks else 'kept'} | {memory / 1e9:.2f} "
                  f"| {seconds:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
