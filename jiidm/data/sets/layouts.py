"""Where public data sets keep their photos and label maps, and plain folders of both."""
from collections.abc import Iterable
from pathlib import Path

from jiidm.data.folders import list_files
from jiidm.data.pictures import PHOTO_SUFFIXES
from jiidm.data.sets.pairs import Pair, match_pairs
from jiidm.system.errors import InputError

# The table of a data set's maps, and further tables that it may have.
SET_TABLES = {
    "ade20k": ("ade20k",),
    "coco-stuff": ("coco-stuff", "coco-stuff-train"),
    "cityscapes": ("cityscapes", "cityscapes-train"),
}
_TRAIN_IDS = "_labelTrainIds"


def find_pairs(name: str, source: str | Path, table: str) -> dict[str, list[Pair]]:
    """Finds the photos and label maps of a public data set, as it is unpacked.

    Args:
        name: one of `SET_TABLES`.
        source: its folder.
        table: name of the table that the maps are read by: some sets have a file for each numbering.

    Returns:
        The pairs of "train" and, where it is there, of "val".

    Raises:
        InputError: the folder has another layout, or photos and maps do not match by name.
    """
    source = Path(source)
    if not source.is_dir():
        raise InputError(f"{source}: no such folder; the folder of {name} was expected")
    return _LAYOUTS[name](source, table)


def find_plain_pairs(photos: str | Path, maps: str | Path, map_suffix: str = "") -> list[Pair]:
    """Finds the pairs of a folder of photos and a folder of label maps (PNG).

    Args:
        photos, maps: the folders.
        map_suffix: what the maps' names have after the photos', such as "_mask".

    Raises:
        InputError: a folder is missing or empty, or photos and maps do not match by name.
    """
    return match_pairs(list_files(Path(photos), PHOTO_SUFFIXES, "photos"),
                       list_files(Path(maps), (".png",), "label maps"), map_suffix=map_suffix)


def _ade20k(source, table):
    """ADEChallengeData2016: images/training/*.jpg and annotations/training/*.png; likewise validation."""
    source = _folder_with("images/training", source, ("ADEChallengeData2016", "."), "annotations/training")
    return _splits({"train": "training", "val": "validation"}, lambda split: match_pairs(
        list_files(source / "images" / split, PHOTO_SUFFIXES, "photos"),
        list_files(source / "annotations" / split, (".png",), "label maps")), source / "images")


def _coco_stuff(source, table):
    """COCO's images/train2017 (or train2017) with the maps of COCO-Stuff; likewise val2017."""
    photos = _folder_with("train2017", source, ("images", "."), "annotations/train2017")
    maps = _folder_with("train2017", source, ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"),
                        "images/train2017")
    suffix = _TRAIN_IDS if table == "coco-stuff-train" else ""

    def pairs_of(split):
        files = list_files(maps / split, (".png",), "label maps")
        files = [file for file in files if file.stem.endswith(_TRAIN_IDS) == bool(suffix)]
        return match_pairs(list_files(photos / split, PHOTO_SUFFIXES, "photos"), files, map_suffix=suffix)

    return _splits({"train": "train2017", "val": "val2017"}, pairs_of, photos)


def _cityscapes(source, table):
    """leftImg8bit/train/CITY/*_leftImg8bit.png and gtFine/train/CITY/*_gtFine_labelIds.png; likewise val."""
    _folder_with("leftImg8bit/train", source, (".",), "gtFine/train")
    suffix = f"_gtFine{_TRAIN_IDS if table == 'cityscapes-train' else '_labelIds'}"

    def pairs_of(split):
        return match_pairs(_of_cities(source / "leftImg8bit" / split, "_leftImg8bit"),
                           _of_cities(source / "gtFine" / split, suffix), "_leftImg8bit", suffix)

    return _splits({"train": "train", "val": "val"}, pairs_of, source / "leftImg8bit")


_LAYOUTS = {"ade20k": _ade20k, "coco-stuff": _coco_stuff, "cityscapes": _cityscapes}


def _splits(names, pairs_of, photos):
    """The pairs of each split; "val" only where its photos are there."""
    return {split: pairs_of(folder) for split, folder in names.items()
            if split == "train" or (photos / folder).is_dir()}


def _folder_with(part, source, names, beside) -> Path:
    """The first of the folders `names` in `source` that has `part` in it."""
    for name in names:
        if (source / name / part).is_dir():
            return source / name
    raise InputError(f"{source / names[0] / part}: no such folder; it was expected, and {beside} beside it: give the "
                     f"folder into which the set's archives are unpacked")


def _of_cities(folder, suffix) -> Iterable[Path]:
    """The pictures of all cities in a folder whose names end with the suffix, sorted; raises InputError for none."""
    files = sorted(folder.glob(f"*/*{suffix}.png"))
    if not files:
        raise InputError(f"{folder}: no CITY/NAME{suffix}.png in it; unpack the set's archives there")
    return files
