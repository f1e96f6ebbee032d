"""Trains the networks of IIDM from a folder in the contest's layout: autoencoder, store of latents,
UNet, and the export of the weights that inference needs."""
import argparse
from pathlib import Path

from jiidm.files import run_tool

STAGES = ("autoencoder", "latents", "unet", "export")


def main():
    """Runs one stage of training, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("all", *STAGES))
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/ (default, paper)")
    parser.add_argument("--data", required=True, type=Path, help="folder with imgs/ and labels/")
    parser.add_argument("--run", required=True, type=Path, help="folder for checkpoints, tables and sheets")
    parser.add_argument("--validation", type=Path, help="folder of held-out photos for the autoencoder's sheets")
    parser.add_argument("--resume", action="store_true", help="go on from the last saved step of --run")
    parser.add_argument("--average", action="store_true", help="export the mean of the kept UNets as one checkpoint")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()

    from jiidm.config import builtin_config, load_config
    from jiidm.stages import Stages

    path = args.config if args.config.endswith((".yaml", ".yml")) else builtin_config(args.config)
    stages = Stages(load_config(path), args.data, args.run, args.validation, args.resume, args.device, args.average)
    for stage in STAGES:
        if args.stage in ("all", stage):
            getattr(stages, stage)()
    if args.stage in ("all", "export"):
        print(f"weights for tools/infer.py --checkpoint: {args.run / 'weights'}")


if __name__ == "__main__":
    run_tool(main)
