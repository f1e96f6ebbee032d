"""Trains the networks of IIDM from a folder in the contest's layout. `all` runs autoencoder, latents, unet and export.
`decoder` makes the pictures of a trained autoencoder sharper and leaves its latents as they are: run it before export.
`segmenter` and `judge` are the networks of `jiidm evaluate`; `gaugan` and `clade` are the models to compare with.

Several processes: mpirun -np N jiidm train ... gives the same result, up to rounding.
"""
import argparse
from pathlib import Path

from jiidm.commands.options import add_device, add_label_options
from jiidm.system.errors import InputError

STAGES = ("autoencoder", "latents", "unet", "export")
FURTHER = ("decoder",)  # on request
EVALUATORS = ("segmenter", "judge")
BASELINES = ("gaugan", "clade")


def main():
    """Runs one stage of training, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("all", *STAGES, *FURTHER, *EVALUATORS, *BASELINES))
    parser.add_argument("--config", required=True,
                        help="YAML file, or the name of one in configs/ (default, judge, gaugan ...)")
    parser.add_argument("--data", required=True, type=Path,
                        help="folder with imgs/ and labels/; for unet also the file that `jiidm data pack` writes")
    parser.add_argument("--run", required=True, type=Path, help="folder for checkpoints, tables and sample grids")
    parser.add_argument("--validation", type=Path,
                        help="folder of held-out photos for quality and sample grids; with labels/ for the segmenter, "
                             "the judge and the baselines")
    parser.add_argument("--resume", nargs="?", const="auto", metavar="auto|STEP|PATH",
                        help="go on from the newest whole state of --run (auto, the default), or from the state of a "
                             "step or in a file; newer states are renamed to NAME.aside")
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="save and stop after so many minutes, with exit code 0; the same command with --resume "
                             "goes on. The last step and the saving come on top")
    parser.add_argument("--start-from", type=Path, metavar="FILE",
                        help="start the UNet's training from the weights of this checkpoint (unet-*.safetensors of a "
                             "run, or what jiidm convert wrote)")
    parser.add_argument("--dry-run", action="store_true",
                        help="print parameters, memory, disk and hours, from a few steps that write nothing")
    parser.add_argument("--tensorboard", action="store_true",
                        help="write the losses and sample grids for TensorBoard too, into RUN/tensorboard")
    parser.add_argument("--average", action="store_true", help="export the mean of the kept UNets as one checkpoint")
    parser.add_argument("--latest", action="store_true",
                        help="export a training that was stopped before its end: the averaged weights as last saved")
    add_label_options(parser)
    add_device(parser)
    args = parser.parse_args()
    _check_arguments(args)

    from jiidm.system.stopping import stoppable

    with stoppable(args.minutes):
        from jiidm.config import config_path
        from jiidm.system.distributed import is_main_process

        others = {**dict.fromkeys(EVALUATORS, _train_evaluator), **dict.fromkeys(BASELINES, _train_baseline)}
        lines = others.get(args.stage, _train_iidm)(args, config_path(args.config))
        if is_main_process() and lines:
            print("\n".join(lines))


def _check_arguments(args):
    """Raises InputError for options that the stage does not have, and for minutes that are none."""
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise InputError(f"--minutes {args.minutes:g}: expected more than 0")
    is_iidm = args.stage in ("all", *STAGES, *FURTHER)
    if args.resume and args.resume.isdigit() and args.stage in ("all", "latents", "export"):
        raise InputError(f"--resume {args.resume}: a step of which stage? Run autoencoder or unet alone, or give the "
                         f"state's file")
    if args.average and not is_iidm:
        raise InputError(f"--average: is for the UNets; leave it out for {args.stage}")
    if args.latest and args.stage != "export":
        raise InputError(f"--latest: is for export; leave it out for {args.stage}")
    if args.latest and args.average:
        raise InputError("--latest: takes the weights of one step; leave out --average")
    if args.dry_run and args.stage in EVALUATORS:
        raise InputError(f"--dry-run: is for the networks of IIDM and the baselines; leave it out for the {args.stage}")
    if args.start_from and args.stage not in ("all", "unet"):
        raise InputError(f"--start-from {args.start_from}: is for the UNet; leave it out for {args.stage}")


def _train_iidm(args, path):
    """Runs the stage of IIDM, or all of them, or with --dry-run plans them; returns the lines to print."""
    from jiidm.config import load_config
    from jiidm.training.classes import reader_of_training, with_classes
    from jiidm.training.stages import Stages, plan_of

    config = load_config(path)
    reader = reader_of_training(config.unet.num_classes, args.classes, args.snap)
    config = with_classes(config, "unet", reader)
    if args.dry_run:
        return plan_of(config, args.data, args.device)
    stages = Stages(config, args.data, args.run, args.validation, args.resume, args.device, args.average,
                    args.tensorboard, args.start_from, reader, args.latest)
    if args.stage == "all":
        stages.numbers_by_hand()  # told now, not after the autoencoder's hours
    for stage in STAGES if args.stage == "all" else (args.stage,):
        getattr(stages, stage)()
    return [_weights_line(args)] if args.stage in ("all", "export") else []


def _train_evaluator(args, path):
    from jiidm.config import load_config
    from jiidm.training.classes import reader_of_training, with_classes
    from jiidm.training.judge import JudgeRun, train_judge
    from jiidm.training.segmenter import SegmenterRun, train_segmenter

    if args.stage == "judge":
        train_judge(load_config(path, JudgeRun), args.data, args.run, args.validation, args.resume, args.device,
                    args.tensorboard)
        return
    config = load_config(path, SegmenterRun)
    reader = reader_of_training(config.segmenter.num_classes, args.classes, args.snap)
    train_segmenter(with_classes(config, "segmenter", reader), args.data, args.run, args.validation, args.resume,
                    args.device, args.tensorboard, reader)


def _train_baseline(args, path):
    """Trains the baseline that the stage names, or with --dry-run describes it; returns the lines to print."""
    from jiidm.baselines.config import BaselineRun
    from jiidm.baselines.training import describe_training, train_baseline
    from jiidm.config import load_config
    from jiidm.training.classes import reader_of_training, with_classes

    config = load_config(path, BaselineRun)
    reader = reader_of_training(config.generator.num_classes, args.classes, args.snap)
    config = with_classes(config, "generator", reader)
    if config.generator.model != args.stage:
        raise InputError(f"{path}: generator.norm {config.generator.norm} makes it {config.generator.model}; expected "
                         f"{args.stage}")
    if args.dry_run:
        return describe_training(config, args.data, args.device, reader)
    train_baseline(config, args.data, args.run, args.validation, args.resume, args.device, args.tensorboard,
                   reader)
    return [_weights_line(args)]


def _weights_line(args):
    return f"weights for jiidm infer --checkpoint: {args.run / 'weights'}"
