"""Trains the networks of IIDM from a folder in the contest's layout: autoencoder, store of latents,
UNet, and the export of the weights that inference needs. `segmenter` is the network of tools/evaluate.py;
`gaugan` and `clade` are the models to compare with.

Several processes: mpirun -np N python tools/train.py ... with the same result, but for rounding.
"""
import argparse
from pathlib import Path

from jiidm.system.errors import InputError

STAGES = ("autoencoder", "latents", "unet", "export")
BASELINES = ("gaugan", "clade")


def main():
    """Runs one stage of training, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("all", *STAGES, "segmenter", *BASELINES))
    parser.add_argument("--config", required=True,
                        help="YAML file, or the name of one in configs/ (default, paper, segmenter, gaugan, clade)")
    parser.add_argument("--data", required=True, type=Path, help="folder with imgs/ and labels/")
    parser.add_argument("--run", required=True, type=Path, help="folder for checkpoints, tables and sheets")
    parser.add_argument("--validation", type=Path,
                        help="folder of held-out photos for the autoencoder's sheets, with labels/ for the segmenter's "
                             "and the baselines'")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="auto|STEP|PATH",
                        help="go on from the newest whole state of --run (auto, the default), or from that of a step "
                             "or a file; newer ones are set aside as NAME.aside")
    parser.add_argument("--start-from", type=Path, metavar="FILE",
                        help="train the UNet on from this checkpoint's weights (unet-*.safetensors of a run, or what "
                             "tools/convert.py wrote); a resumed state has its own")
    parser.add_argument("--dry-run", action="store_true",
                        help="print parameters, memory, disk and hours, from a few steps that write nothing")
    parser.add_argument("--tensorboard", action="store_true",
                        help="write the numbers and sheets for TensorBoard too, into RUN/tensorboard")
    parser.add_argument("--average", action="store_true", help="export the mean of the kept UNets as one checkpoint")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()
    if args.resume and args.resume.isdigit() and args.stage not in ("autoencoder", "unet", "segmenter", *BASELINES):
        raise InputError(f"--resume {args.resume}: a step of which stage? Run autoencoder or unet alone, or give the "
                         f"state's file")
    if args.stage == "segmenter" and (args.dry_run or args.average):
        raise InputError("--dry-run and --average: are for the networks of IIDM; leave them out for the segmenter")

    if args.stage in BASELINES and args.average:
        raise InputError(f"--average: is for the UNets; leave it out for {args.stage}")
    if args.start_from and args.stage not in ("all", "unet"):
        raise InputError(f"--start-from {args.start_from}: is for the UNet; leave it out for {args.stage}")

    from jiidm.system.stopping import stoppable

    with stoppable():
        from jiidm.config import config_path, load_config
        from jiidm.system.distributed import is_main_process
        from jiidm.training.stages import Stages, plan_of

        path = config_path(args.config)
        if args.stage == "segmenter":
            from jiidm.training.segmenter import load_segmenter_run, train_segmenter

            events = args.run / "tensorboard" if args.tensorboard else None
            train_segmenter(load_segmenter_run(path), args.data, args.run, args.validation, args.resume, args.device,
                            events)
            return
        if args.stage in BASELINES:
            _train_baseline(args, path)
            return
        config = load_config(path)
        if args.dry_run:
            lines = plan_of(config, args.data, args.device)
            if is_main_process():
                print("\n".join(lines))
            return
        stages = Stages(config, args.data, args.run, args.validation, args.resume, args.device, args.average,
                        args.tensorboard, args.start_from)
        with stages.claimed():
            for stage in STAGES:
                if args.stage in ("all", stage):
                    getattr(stages, stage)()
    if args.stage in ("all", "export") and is_main_process():
        print(f"weights for tools/infer.py --checkpoint: {args.run / 'weights'}")


def _train_baseline(args, path):
    """Trains, or with --dry-run describes, the model that the stage names, by the configuration `path`."""
    from jiidm.baselines.config import load_baseline_run
    from jiidm.baselines.training import describe_training, train_baseline
    from jiidm.system.distributed import is_main_process

    config = load_baseline_run(path)
    if config.generator.model != args.stage:
        raise InputError(f"{path}: generator.norm {config.generator.norm} makes it {config.generator.model}; expected "
                         f"{args.stage}")
    if args.dry_run:
        lines = describe_training(config, args.data, args.device)
    else:
        events = args.run / "tensorboard" if args.tensorboard else None
        train_baseline(config, args.data, args.run, args.validation, args.resume, args.device, events)
        lines = [f"weights for tools/infer.py --checkpoint: {args.run / 'weights'}"]
    if is_main_process():
        print("\n".join(lines))
