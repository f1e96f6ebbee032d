"""Memory and time of a training step of the UNet: whole batch, micro-batches, recomputed blocks. One Markdown table.

Each row is measured in a process of its own, on made-up latents: the most memory that the process ever held (on a GPU,
that Jittor held there), and the median of three steps after one that compiles. With --fits nothing is measured: the
table says how many samples at a time GPUs of some sizes hold, computed from the sizes of the tensors.
"""
import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

from jiidm.config import PRECISIONS, config_path, load_config


def child(config, batch, micro, blocks):
    """Prints bytes and seconds of a step."""
    from jiidm.training.plan import made_up_store, measured
    from jiidm.training.unet import UNetTrainer

    training = dataclasses.replace(config.train_unet, batch=batch, micro_batch=micro, checkpoint_blocks=blocks)
    config = dataclasses.replace(config, train_unet=training)
    seconds, memory = measured(UNetTrainer(config, made_up_store(config), None, Path("/"), []), 0)
    print(f"measured {memory} {seconds}")


def print_fits(config, sizes):
    """Prints the memory of one sample at a time, and the largest micro-batch for GPUs of these sizes in GB."""
    from jiidm.training.plan import gpu_memory

    print(f"| precision | blocks | one sample, GB | {' | '.join(f'{size} GB' for size in sizes)} |\n"
          f"| --- | --- | ---: |{' ---: |' * len(sizes)}")
    for precision in PRECISIONS:
        for blocks in (False, True):
            def memory(samples, precision=precision, blocks=blocks):
                training = dataclasses.replace(config.train_unet, precision=precision, checkpoint_blocks=blocks,
                                               micro_batch=samples)
                return gpu_memory(dataclasses.replace(config, train_unet=training), samples) / 1e9

            one, more = memory(1), memory(2) - memory(1)
            counts = [max(0, int((size - one) // more) + 1) for size in sizes]
            print(f"| {precision} | {'recomputed' if blocks else 'kept'} | {one:.1f} | "
                  f"{' | '.join(str(count or 'none') for count in counts)} |")


def main():
    """Measures every setting and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="default", help="default, paper, or a YAML file")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--micro", type=int, default=4, help="size of the micro-batches")
    parser.add_argument("--fits", type=int, nargs="*", metavar="GB",
                        help="compute what GPUs of these sizes hold (12 24 48 80) in place of measuring")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = load_config(config_path(args.config))
    if args.child:
        batch, micro, blocks = map(int, args.child.split(","))
        return child(config, batch, micro, bool(blocks))
    if args.fits is not None:
        return print_fits(config, args.fits or (12, 24, 48, 80))
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
