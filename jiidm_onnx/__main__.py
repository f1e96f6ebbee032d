"""python -m jiidm_onnx: draws a picture, finds the label map of a photo, or checks a folder of `jiidm export`.

  python -m jiidm_onnx draw mask.png photo.jpg -o picture.jpg
  python -m jiidm_onnx segment photo.jpg -o mask.png
  python -m jiidm_onnx check
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from jiidm_onnx.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png")


def _parse_arguments():
    parser = argparse.ArgumentParser(prog="python -m jiidm_onnx", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--models", type=Path, metavar="FOLDER",
                        help="what `jiidm export` wrote (default: the folder that this program lies in)")
    common.add_argument("--threads", type=int, metavar="N", help="of onnxruntime (default: one a core)")
    commands = parser.add_subparsers(dest="command", required=True)
    draw = commands.add_parser("draw", parents=[common], help="the landscape of a label map in the style of a photo")
    draw.add_argument("mask", metavar="MASK.png", help="label map, a grey PNG whose values are classes")
    draw.add_argument("style", metavar="STYLE.jpg", help="photo whose colours and light the picture takes")
    draw.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.jpg", help="a JPEG or a PNG")
    draw.add_argument("--size", type=_size, default="mask", metavar="SIZE",
                      help="mask (the label map's size, the default), model (the networks'), or such as 512x384")
    draw.add_argument("--seed", type=int, default=0, help="another one gives another picture (default: %(default)s)")
    draw.add_argument("--rounds", type=int, help="how many rounds of the recipe (default: all)")
    draw.add_argument("--recipe", metavar="JSON", help="""keys that replace the recipe's: '{"sampler": "dpmpp"}'""")
    segment = commands.add_parser("segment", parents=[common], help="the label map of a photo")
    segment.add_argument("photo", metavar="PHOTO.jpg")
    segment.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.png", help="a grey PNG")
    commands.add_parser("check", parents=[common], help="whether all networks are whole and load")
    return parser.parse_args()


def _size(text):
    if text in ("mask", "model"):
        return text
    try:
        width, height = (int(side) for side in text.lower().split("x"))
        if min(width, height) < 1:
            raise ValueError
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: expected mask, model, or a size such as 512x384") from None
    return width, height


def _run(arguments):
    from jiidm_onnx.generator import Generator, default_folder

    folder = arguments.models or default_folder()
    if folder is None:
        raise InputError("no networks beside this program; give the folder of `jiidm export` with --models")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"--threads {arguments.threads}: expected at least 1")
    output = getattr(arguments, "output", None)
    if output is not None:
        suffixes = _SUFFIXES if arguments.command == "draw" else (".png",)
        if output.suffix.lower() not in suffixes or not output.resolve().parent.is_dir():
            raise InputError(f"{output}: expected the name of a {' or '.join(suffixes)} file in a folder that exists")
    generator = Generator(folder, arguments.threads)
    if arguments.command == "check":
        print(f"{folder}: {', '.join(generator.check())}: whole\n{generator.describe()}")
    elif arguments.command == "segment":
        from PIL import Image

        _save(Image.fromarray(generator.segment(arguments.photo)), output)
    else:
        _save(generator.infer(arguments.mask, arguments.style, arguments.rounds, seed=arguments.seed,
                              size=arguments.size, recipe=_read_recipe(arguments.recipe), on_step=_show), output)


def _read_recipe(text):
    try:
        recipe = json.loads(text or "{}")
        if isinstance(recipe, dict):
            return recipe
        reason = "no object"
    except (ValueError, RecursionError) as error:
        reason = str(error)
    raise InputError(f"--recipe {text}: {reason}; expected keys and values in JSON")


def _show(step):
    if sys.stderr.isatty():
        print(f"\rround {step.round + 1}, step {step.done} of {step.steps} ", end="", file=sys.stderr, flush=True)


def _save(picture, path):
    """Writes the picture whole or not at all."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        picture.save(temporary, quality=95)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{path}: {picture.width}x{picture.height}")


def main() -> None:
    """Runs the command line; exit code 2 for bad input."""
    arguments = _parse_arguments()
    try:
        _run(arguments)
    except ModuleNotFoundError as error:
        print(f"error: the package {error.name} is not installed; pip install numpy pillow onnxruntime",
              file=sys.stderr)
        sys.exit(2)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
