"""Makes training and test folders in the contest's layout, and checks training folders.

  jiidm data stanford SOURCE train --split train
  jiidm data stanford SOURCE test --split val --test --references train
  jiidm data landscapes LANDSCAPES data --stanford STANFORD
  jiidm data ade20k ADEChallengeData2016 data --keep sky,tree,mountain,sea,water,grass --min-known 0.8
  jiidm data folder PHOTOS data --maps MAPS --classes mine.yaml --val-share 0.1
  jiidm data synthetic train --count 1000
  jiidm data synthetic test --count 50 --seed 1 --test --references train
  jiidm data check train
  jiidm data pack train runs/mine/latents mine.latents --whole
"""
import argparse
import json
from pathlib import Path

from jiidm.commands.options import add_label_options
from jiidm.data.check import check_folder, match_pairs, report_text
from jiidm.data.classes import CONTEST, MAX_CLASSES, TABLES, load_table
from jiidm.data.contact_sheet import contact_sheet
from jiidm.data.drawn.scenes import SMALLEST, draw_landscape
from jiidm.data.folders import TrainingFolder, list_pairs, write_test_folder, write_training_folder
from jiidm.data.sets.landscapes import write_landscapes
from jiidm.data.sets.layouts import SET_TABLES, find_pairs, find_plain_pairs
from jiidm.data.sets.pairs import CLASSES_FILE, Conversion, check_conversion, split_pairs, write_sets
from jiidm.data.sets.stanford import fill_no_class, read_stanford
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole
from jiidm.training.classes import reader_of_training


def parse_arguments():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    stanford = commands.add_parser("stanford", help="convert the Stanford Background Dataset")
    stanford.add_argument("source", help="folder with images/, labels/, train.txt and val.txt")
    stanford.add_argument("--split", choices=("train", "val"), default="train",
                          help="list to convert (default %(default)s)")
    landscapes = commands.add_parser(
        "landscapes", help="make train/, val/ and test/ of a folder of landscapes",
        description="Writes DESTINATION/train, val and test. by_hand.txt lists the label maps that people made; "
                    "test has those of the validation list, with other photos of val/ as style references.")
    landscapes.add_argument("source", help="folder with imgs/, labels/, train.txt, val.txt and origins.tsv")
    landscapes.add_argument("--stanford", metavar="FOLDER",
                            help="add the training photos of the Stanford Background Dataset in FOLDER")
    sets = add_sets(commands)
    synthetic = commands.add_parser("synthetic", help="draw landscapes with exact labels")
    synthetic.add_argument("--count", type=int, default=100, help="how many (default %(default)s)")
    for command, width, height in ((stanford, 192, 144), (landscapes, 256, 192), (synthetic, 512, 384),
                                   *((command, 256, 192) for command in sets)):
        command.add_argument("destination", help="the folder to write; it must not exist or be empty")
        command.add_argument("--width", type=int, default=width, help="in pixels (default %(default)s)")
        command.add_argument("--height", type=int, default=height, help="in pixels (default %(default)s)")
        command.add_argument("--seed", type=int, default=0,
                             help="seed of all random choices (default %(default)s)")
    for command in (stanford, synthetic):
        command.add_argument("--test", action="store_true", help="write a test folder: masks and label_to_img.json")
        command.add_argument("--references", metavar="FOLDER",
                             help="with --test: the training folder whose photos are the style references")
    check = commands.add_parser("check", help="list the faults of a training folder",
                                description="Lists the faults of a training folder. Exit code 0: a training can start; "
                                            "1: faults; 2: no such folder.")
    check.add_argument("folder", help="folder with imgs/ and labels/")
    add_label_options(check, number=True)
    check.add_argument("--width", type=int, default=512,
                       help="of the training's pictures, in pixels (default %(default)s)")
    check.add_argument("--height", type=int, default=384,
                       help="of the training's pictures, in pixels (default %(default)s)")
    check.add_argument("--json", metavar="FILE", help="also write the report to FILE")
    check.add_argument("--sheet", metavar="FILE", help="also draw photos with their label maps, a JPEG or a PNG")
    add_pack(commands)
    return parser.parse_args()


def add_pack(commands):
    """Adds the command for packed latents."""
    pack = commands.add_parser(
        "pack", help="write a store of latents as one small file",
        description="Writes the latents that `jiidm train latents` has made, with their label maps, as one file. "
                    "`jiidm train unet --data FILE` trains on it, on a machine without the photos.")
    pack.add_argument("folder", help="the training folder, with imgs/ and labels/")
    pack.add_argument("latents", help="its store of latents, RUN/latents")
    pack.add_argument("destination", help="the file to write")
    pack.add_argument("--step", type=float, default=0.4, metavar="SHARE",
                      help="round latents to multiples of this many standard deviations (default %(default)s)")
    pack.add_argument("--whole", action="store_true", help="leave out the mirror images and further views")


def pack_store(arguments):
    """Packs a store of latents and says how large the file is and what the rounding costs."""
    from jiidm.data.latents import LatentStore, files_hash  # imports Jittor, which the other commands do without
    from jiidm.data.packed import pack_latents

    folder, store = TrainingFolder(arguments.folder), LatentStore(arguments.latents)
    if store.about.get("files") != files_hash(folder):
        raise InputError(f"{arguments.latents}: not the latents of the files in {arguments.folder}; give the folder "
                         f"that they were made of, or run jiidm train latents again")
    path = Path(arguments.destination)
    error = pack_latents(store, path, folder.names, folder.by_hand(), arguments.step, arguments.whole)
    kept = "whole photos" if arguments.whole else f"{len(store)} latents"
    size = path.stat().st_size
    print(f"{path}: {len(folder)} photos, {kept}, {size / 1e6:.1f} MB, {size / len(folder):.0f} bytes a photo; "
          f"rounding error {error:.3f} of the latents")


def add_sets(commands):
    """Adds the commands for public data sets and plain folders; returns their parsers."""
    parsers = []
    for name, (table, *others) in {**SET_TABLES, "folder": ("contest",)}.items():
        plain = name == "folder"
        what = "photos and label maps of two folders" if plain else load_table(table).title
        parser = commands.add_parser(
            name, help=f"convert {what}",
            description="Writes DESTINATION/train and, if there are validation photos, DESTINATION/val.")
        parser.add_argument("source", help="folder of photos" if plain else "folder of the unpacked archives")
        if plain:
            parser.add_argument("--maps", required=True, metavar="FOLDER", help="folder of the label maps, NAME.png")
            parser.add_argument("--map-suffix", default="", metavar="TEXT",
                                help="what the maps' names have after the photos', such as _mask")
        names = TABLES if plain else (table, *others)
        parser.add_argument("--classes", default=table, metavar="NAME|FILE",
                            help=f"table of the maps' classes: {', '.join(names)}, or a YAML file (default "
                                 f"%(default)s)")
        parser.add_argument("--keep", type=lambda text: tuple(text.split(",")), metavar="CLASS,CLASS",
                            help="keep these classes; pixels of others have no class, 255 (default: all)")
        parser.add_argument("--min-known", type=float, default=0.5, metavar="SHARE",
                            help="leave out photos with a class in a smaller share of the pixels (default %(default)s)")
        parser.add_argument("--fit", choices=("crop", "stretch"), default="crop",
                            help="crop to the size's aspect, or stretch the whole picture (default %(default)s)")
        parser.add_argument("--snap", action="store_true",
                            help="give stray colours, as on smoothed edges, the nearest class around them")
        parser.add_argument("--val-share", type=float, default=0.1 if plain else None, metavar="SHARE",
                            help="share of the photos for validation, chosen by --seed (default "
                                 f"{'%(default)s' if plain else 'the validation photos of the set'})")
        parsers.append(parser)
    return parsers


def check_arguments(arguments):
    """Raises InputError for a value out of its range and for --test without --references or the reverse."""
    if arguments.command in ("check", "pack"):
        return
    for option, smallest in (("width", SMALLEST), ("height", SMALLEST), ("seed", 0), ("count", 1)):
        value = getattr(arguments, option, smallest)
        if value < smallest:
            raise InputError(f"--{option} {value}: {smallest} or more was expected")
    if arguments.command not in ("stanford", "synthetic"):
        return
    if arguments.test and not arguments.references:
        raise InputError("--test: the style references are missing; add --references TRAINING_FOLDER")
    if arguments.references and not arguments.test:
        raise InputError("--references: is for a test folder; add --test or leave it out")


def read_examples(arguments):
    """Yields the (name, photo, labels) that the command line asks for."""
    if arguments.command == "stanford":
        yield from read_stanford(arguments.source, arguments.split, arguments.width, arguments.height)
        return
    for index in range(arguments.count):
        yield f"{index:06d}", *draw_landscape((arguments.seed, index), arguments.width, arguments.height)


def convert_set(arguments):
    """Writes the training and validation folders of a data set and says what is in them."""
    table = load_table(arguments.classes)
    conversion = Conversion(table, arguments.width, arguments.height, arguments.keep, arguments.min_known,
                            arguments.fit, arguments.snap)
    check_conversion(conversion)
    if arguments.command == "folder":
        splits = {"train": find_plain_pairs(arguments.source, arguments.maps, arguments.map_suffix)}
    else:
        splits = find_pairs(arguments.command, arguments.source, table.name)
    if arguments.val_share is not None:
        splits = split_pairs([pair for pairs in splits.values() for pair in pairs], arguments.val_share, arguments.seed)
    counts = write_sets(arguments.destination, splits, conversion)
    written = ", ".join(f"{split} {count.written} photos" for split, count in counts.items())
    print(f"{arguments.destination}: {written}")
    contest = conversion.classes is CONTEST
    print(f"maps read by the table {table.name}; they count in {'the contest' if contest else 'the table'}'s "
          f"{len(conversion.classes)} classes")
    if not contest:
        print(f"train with --classes {Path(arguments.destination) / CLASSES_FILE}")
    left_out = sum(count.left_out for count in counts.values())
    if left_out:
        print(f"{left_out} photos are left out: fewer than {100 * arguments.min_known:g} % of their pixels have a "
              f"class (--min-known)")


def check(arguments):
    """Prints the report on a training folder; returns the exit code, 1 where a training would stop."""
    if arguments.sheet and not arguments.sheet.lower().endswith((".jpg", ".jpeg", ".png")):
        raise InputError(f"--sheet {arguments.sheet}: expected the name of a picture, such as sheet.jpg")
    count = int(arguments.classes) if arguments.classes.isdecimal() else len(CONTEST)
    if not 1 <= count <= MAX_CLASSES:
        raise InputError(f"--classes {count}: 1 to {MAX_CLASSES} were expected, or a table's name or file")
    reader = reader_of_training(count, "auto" if arguments.classes.isdecimal() else arguments.classes, arguments.snap)
    report = check_folder(arguments.folder, len(reader.vocabulary), arguments.width, arguments.height, reader=reader)
    print(report_text(report), end="")
    if arguments.json:
        with written_whole(arguments.json) as path:
            path.write_text(json.dumps(report.as_dict(), indent=1) + "\n", "utf-8")
    if arguments.sheet:
        pairs = match_pairs(*list_pairs(Path(arguments.folder)))
        sheet = contact_sheet([pair for pair in pairs if None not in pair], reader)
        with written_whole(arguments.sheet) as path:
            sheet.save(path, quality=92)
    return 1 if report.faults else 0


def main():
    """Writes the folder that the command line asks for, or checks one; returns the exit code."""
    arguments = parse_arguments()
    check_arguments(arguments)
    if arguments.command == "check":
        return check(arguments)
    if arguments.command == "pack":
        return pack_store(arguments)
    if arguments.command == "landscapes":
        counts = write_landscapes(arguments.source, arguments.destination, arguments.width, arguments.height,
                                  arguments.stanford, arguments.seed)
        print(f"{arguments.destination}: train {counts.train} photos ({counts.train_by_hand} labelled by hand), "
              f"val {counts.val} ({counts.val_by_hand}), test {counts.test} masks")
        if counts.enlarged:
            print(f"{counts.enlarged} photos are smaller than {arguments.width}x{arguments.height} and were enlarged")
        return 0
    if arguments.command in (*SET_TABLES, "folder"):
        convert_set(arguments)
        return 0
    examples = read_examples(arguments)
    if arguments.test:
        training = TrainingFolder(arguments.references)
        masks = ((name, fill_no_class(labels, name)) for name, _, labels in examples)
        count = write_test_folder(arguments.destination, masks, training, arguments.seed)
        print(f"{arguments.destination}: {count} masks, their references from {arguments.references}")
    else:
        count = write_training_folder(arguments.destination, examples)
        print(f"{arguments.destination}: {count} photos with their label maps")
    return 0
