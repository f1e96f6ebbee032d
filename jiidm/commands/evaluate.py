"""Measures a folder of generated pictures against label maps and style references.

  jiidm evaluate RESULTS --labels test --references train --output evaluation

Writes report.md, report.json and report.html, one self-contained page.
"""
import argparse
from pathlib import Path

from jiidm.commands.options import add_device, add_label_options


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of STEM.jpg, one for each label map")
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR",
                        help="test folder with label_to_img.json, or its folder of label PNGs")
    parser.add_argument("--references", required=True, type=Path, metavar="DIR|JSON",
                        help="folder of the style photos (or one with imgs/); or another label_to_img.json beside them")
    parser.add_argument("--real", type=Path, metavar="DIR", help="real photos of the same masks: the ceiling")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="another folder of results, for paired differences")
    parser.add_argument("--segmenter", type=Path, metavar="FILE", help="SegFormer (default: the package's own)")
    parser.add_argument("--segmenter-classes", type=Path, metavar="FILE",
                        help="table of the classes of a SegFormer that was not trained for the contest's: a name such "
                             "as ade20k-train, or a YAML or JSON file, also of {output: class} (default: by the number "
                             "of its classes, 150, 171 or 19)")
    judge = parser.add_mutually_exclusive_group()
    judge.add_argument("--judge", type=Path, default=True, metavar="FILE",
                       help="the judge's head (default: the package's own, where the extra judge is installed)")
    judge.add_argument("--no-judge", dest="judge", action="store_false", help="leave out the judge's figures")
    parser.add_argument("--inception", type=Path, metavar="FILE",
                        help="pt_inception-2015-12-05-6726825d.pth for the FID (default: FD-segmenter in its place)")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), metavar="DIR",
                        help="folder for the report (default %(default)s)")
    parser.add_argument("--statistics", type=Path, metavar="DIR",
                        help="folder in which the photos' feature statistics are kept (default: OUTPUT/statistics)")
    parser.add_argument("--allow-missing", action="store_true",
                        help="measure the rest where pictures are missing, extra, unreadable or of another size")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap resamples (default %(default)s)")
    add_label_options(parser)
    add_device(parser)
    return parser.parse_args()


def main():
    """Measures the pictures and writes the report."""
    arguments = parse_arguments()

    from jiidm.evaluation.measure import FRECHET_RESAMPLES, Protocol, evaluate
    from jiidm.evaluation.report import write_report
    from jiidm.system.files import output_folder
    from jiidm.system.runtime import use_device

    use_device(arguments.device)
    protocol = Protocol(arguments.resamples, min(arguments.resamples, FRECHET_RESAMPLES))
    output_folder(arguments.output)
    evaluation = evaluate(
        arguments.results, arguments.labels, arguments.references, arguments.real, arguments.compare,
        segmenter=arguments.segmenter, segmenter_classes=arguments.segmenter_classes, judge=arguments.judge,
        inception=arguments.inception, statistics=arguments.statistics or arguments.output / "statistics",
        allow_missing=arguments.allow_missing, protocol=protocol, classes=arguments.classes, snap=arguments.snap,
    )
    paths = write_report(evaluation, arguments.output)
    print(paths[0].read_text("utf-8"))
    print(f"written: {', '.join(map(str, paths))}")
