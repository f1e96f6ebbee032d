"""Makes label maps of photos: maps/NAME.png for each photo, at its size.

  jiidm segment photo.jpg -o maps
  jiidm segment photos/ -o maps --overlay --confidence
  jiidm segment photo.jpg -o maps --segmenter segformer-b0-ade.safetensors

A label map is a PNG whose palette has the class colours: programs that paint show them, jiidm reads the classes.
"""
import argparse
from pathlib import Path

from jiidm.commands.options import add_device
from jiidm.system.errors import InputError

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_KINDS = {"colors": ".png", "overlay": ".jpg", "confidence": ".png"}


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO", help="a photo, or a folder of photos")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="folder for the maps")
    parser.add_argument("--colors", action="store_true", help="also colors/NAME.png, RGB in the class colours")
    parser.add_argument("--overlay", action="store_true", help="also overlay/NAME.jpg, the colours over the photo")
    parser.add_argument("--confidence", action="store_true",
                        help="also confidence/NAME.png, grey: the probability of each pixel's class, 255 is certain")
    parser.add_argument("--segmenter", metavar="NAME|FILE",
                        help="judge (better; needs the extra judge), small, a file of jiidm train segmenter, or public "
                             "weights of SegFormer (default: judge where its extra is installed, else small)")
    parser.add_argument("--segmenter-classes", metavar="NAME|FILE",
                        help="table of the classes of a SegFormer: a name such as ade20k-train, or a YAML file "
                             "(default: by the number of its classes, 150, 171 or 19)")
    parser.add_argument("--overwrite", action="store_true", help="replace maps that exist")
    add_device(parser)
    return parser.parse_args()


def main():
    """Makes the maps; returns 1 when a photo could not be read."""
    args = parse_arguments()
    photos = list_photos(args.photos)
    kinds = [kind for kind in _KINDS if getattr(args, kind)]
    check_output(args.output, photos, args.overwrite)

    from jiidm.system.stopping import interruptible, stoppable

    with stoppable(), interruptible():
        from jiidm.evaluation.segment import open_segmenter
        from jiidm.system.files import output_folder
        from jiidm.system.runtime import use_device

        use_device(args.device)
        segmenter = open_segmenter(args.segmenter, args.segmenter_classes)
        print(f"segmenter: {segmenter.name}: {segmenter.about}")
        for folder in (args.output, *(args.output / kind for kind in kinds)):
            output_folder(folder)
        problems = []
        for name, path in photos.items():
            try:
                print(write_maps(segmenter, path, args.output, name, kinds))
            except InputError as error:
                problems.append(str(error))
    for problem in problems:
        print(f"not made: {problem}")
    return 1 if problems else 0


def list_photos(paths):
    """Returns {name: path} of the photos that files and folders give; raises InputError where two have one name."""
    from jiidm.data.folders import list_files

    photos = {}
    for given in paths:
        for path in list_files(given, _SUFFIXES, "photos") if given.is_dir() else [given]:
            if not path.is_file():
                raise InputError(f"{path}: no such file; a photo or a folder of photos was expected")
            if path.stem in photos:
                raise InputError(f"{path}: the name of {photos[path.stem]} too; give the two in separate calls")
            photos[path.stem] = path
    return photos


def check_output(output, photos, overwrite):
    """Raises InputError where the output is no folder or a map would be replaced."""
    if output.suffix.lower() in _SUFFIXES or output.is_file():
        raise InputError(f"{output}: a folder for the maps was expected, such as maps")
    taken = [output / f"{name}.png" for name in photos if (output / f"{name}.png").exists()]
    if taken and not overwrite:
        raise InputError(f"{taken[0]}: exists{f', and {len(taken) - 1} more' if taken[1:] else ''}; choose another "
                         f"folder, or replace them with --overwrite")


def write_maps(segmenter, path, output, name, kinds):
    """Writes the maps of a photo; returns a line on them."""
    import numpy as np

    from jiidm.data.pictures import read_photo

    photo, names, palette = read_photo(path), segmenter.table.names, segmenter.table.palette
    labels, confidence = segmenter.segment(photo)
    colors = palette[labels]
    pictures = {
        "colors": lambda: colors,
        "overlay": lambda: ((photo.astype(np.uint16) + colors) // 2).astype(np.uint8),
        "confidence": lambda: np.rint(255 * confidence).astype(np.uint8),
    }
    for kind in kinds:
        save(pictures[kind](), output / kind / f"{name}{_KINDS[kind]}")
    save(labels, output / f"{name}.png", palette)
    shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
    found = ", ".join(f"{100 * shares[c]:.0f} % {names[c]}" for c in np.argsort(-shares, kind="stable")[:4]
                      if shares[c] >= 0.005)
    return (f"{output / f'{name}.png'}: {labels.shape[1]}x{labels.shape[0]}, {found}; "
            f"mean confidence {confidence.mean():.2f}")


def save(picture, path, palette=None):
    """Writes a picture whole or not at all; labels get a palette, N x 3 uint8."""
    from PIL import Image

    from jiidm.system.files import written_whole

    image = Image.fromarray(picture)
    if palette is not None:
        image.putpalette(palette.tobytes())
    with written_whole(path) as temporary:
        image.save(temporary, quality=92)
