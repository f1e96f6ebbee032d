"""Which classes a training has: the table of its label maps decides."""
import dataclasses

from jiidm.data.classes import MAX_CLASSES, load_table
from jiidm.data.vocabulary import LabelReader, Vocabulary, numbered
from jiidm.system.errors import InputError


def reader_of_training(num_classes, classes="auto", snap=False):
    """The `LabelReader` of a training's label maps.

    Args:
        num_classes: of the configuration; with a table it does not matter.
        classes: the table of the label maps, a shipped one's name or a YAML file: the network learns the classes that
            its classes become. "auto": the contest's where there are 29, else numbers without names.
        snap: as for `LabelReader`.

    Raises:
        InputError: no such table, or one of no or too many classes.
    """
    if classes == "auto":
        return LabelReader(numbered(num_classes), classes, snap)
    table = load_table(classes)
    learnt = table.target_table()
    if not 1 <= len(learnt) <= MAX_CLASSES:
        raise InputError(f"{classes}: {len(learnt)} classes to learn; expected 1 to {MAX_CLASSES}")
    return LabelReader(Vocabulary(learnt), table, snap)


def with_classes(config, section, reader):
    """The configuration whose `section` has as many classes as the label maps of a `LabelReader`."""
    network = dataclasses.replace(getattr(config, section), num_classes=len(reader.vocabulary))
    return dataclasses.replace(config, **{section: network})
