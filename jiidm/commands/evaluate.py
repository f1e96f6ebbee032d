"""Measures a folder of generated pictures against label maps and style references: report.md, report.json and
report.html, one self-contained page."""
import argparse
import warnings
from pathlib import Path


def main():
    """Reads the arguments, measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of STEM.jpg, one for each label map")
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR",
                        help="test folder with label_to_img.json, or its folder of label PNGs")
    parser.add_argument("--references", required=True, type=Path, metavar="DIR|JSON",
                        help="folder of the style photos (or one with imgs/); or another label_to_img.json beside them")
    parser.add_argument("--real", type=Path, metavar="DIR", help="real photos of the same masks: the ceiling")
    parser.add_argument("--compare", type=Path, metavar="DIR", help="another folder of results, for paired differences")
    parser.add_argument("--segmenter", type=Path, metavar="FILE",
                        help="SegFormer for the contest's classes (default: the package's own)")
    parser.add_argument("--inception", type=Path, metavar="FILE",
                        help="pt_inception-2015-12-05-6726825d.pth for the FID (default: FD-segmenter in its place)")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), metavar="DIR",
                        help="folder for the report (default evaluation)")
    parser.add_argument("--statistics", type=Path, metavar="DIR",
                        help="folder that keeps the photos' feature statistics (default: OUTPUT/statistics)")
    parser.add_argument("--allow-missing", action="store_true",
                        help="measure the rest where pictures are missing, extra, unreadable or of another size")
    parser.add_argument("--bins", type=int, default=8, help="of the colour histograms, a channel (default 8)")
    parser.add_argument("--color-space", default="rgb", choices=("rgb", "lab", "hsv"), help="of the histograms")
    parser.add_argument("--histogram", default="joint", choices=("joint", "single"),
                        help="one of all channels together, or one a channel and their mean (default joint)")
    parser.add_argument("--histogram-scale", default="linear", choices=("linear", "root"),
                        help="counts, however normalised, or their square roots (default linear)")
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap (default 1000)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args()

    from jiidm.evaluation.measure import FRECHET_RESAMPLES, Protocol, evaluate
    from jiidm.evaluation.metrics import HistogramProtocol
    from jiidm.evaluation.report import write_report
    from jiidm.system.files import output_folder
    from jiidm.system.runtime import use_device

    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    use_device(args.device)
    protocol = Protocol(HistogramProtocol(args.bins, args.color_space, args.histogram, args.histogram_scale),
                        args.resamples, min(args.resamples, FRECHET_RESAMPLES))
    output_folder(args.output)
    evaluation = evaluate(
        args.results, args.labels, args.references, args.real, args.compare, args.segmenter, args.inception,
        args.statistics or args.output / "statistics", args.allow_missing, protocol=protocol,
    )
    paths = write_report(evaluation, args.output)
    print(paths[0].read_text("utf-8"))
    print(f"written: {', '.join(map(str, paths))}")
