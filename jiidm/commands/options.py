"""Options that several commands have."""


def add_label_options(parser, nearest=False, number=False):
    """Adds how label maps are read: `classes`, `snap` and, where pictures are made, `nearest_class`.

    With `number` the classes may also be only counted.
    """
    parser.add_argument("--classes", default="auto", metavar="TABLE",
                        help="table of the label maps' classes: a name (contest, ade20k, coco-stuff, cityscapes, "
                             "gaugan, ...), a YAML file, or auto. With auto, the default, numbers are the weights' own "
                             "labels, and colours are read by the one table that has all of them"
                             + (". A number is taken as the number of classes" if number else ""))
    parser.add_argument("--snap", action="store_true",
                        help="give stray colours of smoothed or JPEG label maps the nearest class around them")
    if nearest:
        parser.add_argument("--nearest-class", action="store_true",
                            help="draw classes that the weights have never seen as their nearest one: sea as water, "
                                 "hill as mountain")


def add_device(parser):
    """Adds where the networks are computed: `device`."""
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"),
                        help="where to compute (default: auto, CUDA where it works)")
