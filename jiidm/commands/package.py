"""Checks the generated pictures of a test folder and packs them into the zip file that the contest takes.

  jiidm package --input_path test --results results --output result.zip

If pictures are missing or wrong, all of them are listed, nothing is written, and the exit code is 2.
"""
import argparse
import sys

from jiidm.contest.submission import check_submission, write_submission
from jiidm.system.errors import InputError


def parse_arguments():
    """The command line as `argparse` gives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input_path", required=True, metavar="FOLDER", help="test folder; it holds label_to_img.json")
    parser.add_argument("--results", required=True, metavar="FOLDER", help="the generated pictures, MASK-STEM.jpg")
    parser.add_argument("--output", required=True, metavar="FILE.zip", help="the file to write")
    parser.add_argument("--width", type=int, default=512, help="of each picture, in pixels (default %(default)s)")
    parser.add_argument("--height", type=int, default=384, help="of each picture, in pixels (default %(default)s)")
    return parser.parse_args()


def main():
    """Checks the pictures and writes the zip; raises InputError, after listing the faults, if there are any."""
    arguments = parse_arguments()
    pictures, faults, extra = check_submission(
        arguments.input_path, arguments.results, arguments.width, arguments.height)
    for fault in faults:
        print(fault, file=sys.stderr)
    for name in extra:
        print(f"warning: {name} belongs to no mask and is left out", file=sys.stderr)
    if faults:
        raise InputError(f"{arguments.results}: {len(faults)} of {len(pictures)} pictures are missing or wrong, listed "
                         f"above; generate them again; {arguments.output} is not written")
    write_submission(arguments.output, pictures)
    print(f"{arguments.output}: {len(pictures)} pictures of {arguments.width}x{arguments.height}")
