"""Writes the painter as a folder that any static server can host: the browser computes the pictures.

  jiidm page -o painter
  python -m http.server --directory painter      and open http://localhost:8000

It needs the extras `onnx` and `painter`, and npm for the first time: pip install 'jiidm[onnx,painter]'.
"""
import argparse
import tempfile
from pathlib import Path

from jiidm.system.errors import InputError, SetupError


def main():
    """Reads the arguments, exports the networks and writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", nargs="?", default="default", metavar="WEIGHTS",
                        help="folder of checkpoints (default: the package's own)")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER",
                        help="the folder to write; a page that is there is replaced")
    parser.add_argument("--styles", type=Path, metavar="FOLDER",
                        help="photos for the style gallery (default: the examples)")
    parser.add_argument("--runtime", type=Path, metavar="FILE.tgz",
                        help="the npm package onnxruntime-web (default: npm fetches it into ~/.cache/jiidm)")
    args = parser.parse_args()
    if args.styles and not args.styles.is_dir():
        raise InputError(f"{args.styles}: no such folder; expected a folder of photos")
    try:
        from jiidm.export.folder import export
        from jiidm.painter.engine import Engine
        from jiidm.painter.examples import example_gallery
        from jiidm.painter.server import Gallery
        from jiidm.painter.static import build_page
    except ModuleNotFoundError as error:
        if (error.name or "jiidm").partition(".")[0] == "jiidm":
            raise
        raise SetupError(f"the page needs {error.name}; pip install 'jiidm[onnx,painter]'") from error

    model = Engine(args.weights, "cpu").describe()
    with tempfile.TemporaryDirectory() as place:
        export(args.weights, place)
        gallery = Gallery(args.styles) if args.styles else example_gallery()
        files = build_page(place, model, gallery, args.output, args.runtime)
    size = sum(entry["bytes"] for entry in files.values())
    print(f"{args.output}: {len(files)} files, {size / 1e6:.0f} MB; python -m http.server --directory {args.output} "
          f"serves it at http://localhost:8000")
