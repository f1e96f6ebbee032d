"""Loads the networks of the evaluation: segmenters of jiidm, public SegFormers, the FID's Inception."""
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from jiidm.checkpoint import FORMAT, check_numbers, load_into, load_tensors, open_tensors, save_tensors, source_of
from jiidm.config import from_dict, read_yaml, to_dict
from jiidm.data.classes import CONTEST, TABLES, ClassTable, load_table
from jiidm.data.labels import CLASSES
from jiidm.data.vocabulary import Vocabulary, vocabulary_of
from jiidm.evaluation.inception import Inception
from jiidm.evaluation.public_segformer import infer_config, rename
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.foreign.archive import open_weights
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole
from jiidm.system.runtime import jt

KIND = "segmenter"
DEFAULT_SEGMENTER = Path(__file__).parent.parent / "weights" / "evaluator" / "segmenter.safetensors"

_UNUSED = re.compile(r"(.*\.)?num_batches_tracked|fc\.(weight|bias)|AuxLogits\..*")  # of the Inception
_CLASSIFIER = re.compile(r"decode_head\.(classifier|linear_pred)\.weight$")
_NETWORK_TABLES = ("ade20k-train", "coco-stuff-train", "cityscapes-train")  # told apart by how many classes they have


@dataclass(frozen=True)
class Known:
    """What is known of a segmenter, from a JSON file beside its weights.

    Args:
        classes: the classes of its training photos, as sorted indices.
        photos: how many held-out photos it was measured on. None, like the two below: nobody measured it.
        mask_accuracy: on all pixels of these photos, 0..1.
        mean_iou: likewise.
    """

    classes: tuple[int, ...]
    photos: int | None = None
    mask_accuracy: float | None = None
    mean_iou: float | None = None


@dataclass(frozen=True)
class Evaluator:
    """A network in evaluation mode, and its file.

    Args:
        network: a `Segformer` or the `Inception`.
        file: name of the file.
        sha256: of its content.
        known: what is known of a segmenter. None: nothing.
        classes: our class of each output of a segmenter that was trained for another set of classes. None: the outputs
            are our classes.
        vocabulary: what "our classes" are.
    """

    network: Any
    file: str
    sha256: str
    known: Known | None = None
    classes: tuple[int, ...] | None = None
    vocabulary: Vocabulary = field(default_factory=lambda: Vocabulary(CONTEST))


# ------------------------------------------------------------------------------------------------------------ segmenter

def save_segmenter(path: str | Path, arrays: Mapping[str, np.ndarray], config: SegformerConfig, step: int,
                   note: str = "", dtype: str = "float16", vocabulary: Vocabulary | None = None) -> None:
    """Writes a segmenter as safetensors.

    Args:
        path: the file; it appears whole or not at all.
        arrays: the parameters of a `Segformer`, by name.
        config: its configuration.
        step: the training step.
        note: how it was made, in words.
        dtype: "float16" or "float32".
        vocabulary: what it knows of classes.

    Raises:
        InputError: NaN or a number beyond the range of `dtype`, or the file cannot be written.
    """
    save_tensors(path, arrays, {
        "format": FORMAT, "kind": KIND, "config": json.dumps(to_dict(config)), "step": str(step), "note": note,
        **({"classes": json.dumps(vocabulary.as_dict())} if vocabulary else {}),
    }, dtype, finite=True)


def load_segmenter(path: str | Path | None = None,
                   classes: str | Path | Mapping[int, int] | None = None) -> Evaluator:
    """Loads a segmenter.

    Args:
        path: a file of `save_segmenter`, or public weights of SegFormer (PyTorch or safetensors) with the names of the
            authors' release or of Hugging Face. None: the package's own.
        classes: for public weights that were trained for another set of classes: {index in the segmenter: our class},
            a YAML or JSON file of it, or a table of classes by name or file (`jiidm.data.classes`). Outputs that it
            does not name, or ignores, are never predicted. None: for 150 outputs the table ade20k-train, for 171
            coco-stuff-train, for 19 cityscapes-train, which one line on stderr says.

    Returns:
        The `Evaluator`. Its `known` is from the JSON file beside the weights, or from `classes`. It is None without
        such a file, and where the file is broken or of other weights, which one line on stderr says.

    Raises:
        InputError: as `load_segmenter_network`, and for a table that does not fit.
    """
    if path is None and not DEFAULT_SEGMENTER.is_file():
        raise InputError(f"{DEFAULT_SEGMENTER}: the package has no segmenter here; give a file with --segmenter")
    path = Path(path or DEFAULT_SEGMENTER)
    classes = _usual_table(path) if classes is None else classes
    if classes is None:
        network, sha256 = load_segmenter_network(path), source_of(path).sha256
        vocabulary = _read_vocabulary(path, network.config.num_classes)
        known = _read_known(path, sha256, len(vocabulary))
        if known is None and vocabulary.seen:
            known = Known(tuple(np.flatnonzero(vocabulary.seen.in_maps).tolist()))
        return Evaluator(network, path.name, sha256, known, vocabulary=vocabulary)
    table = classes if isinstance(classes, Mapping) else _read_classes(classes)
    name = "the table of classes" if isinstance(classes, Mapping) else classes
    network, ours = load_segmenter_network(path, table, name), tuple(table[index] for index in sorted(table))
    return Evaluator(network, path.name, source_of(path).sha256, Known(tuple(sorted(set(ours)))), ours)


def _usual_table(path: Path) -> str | None:
    """The name of the table of classes that public weights with this number of outputs follow; None without one."""
    weights = open_weights(path)
    outputs = next((tensor.shape[0] for name, tensor in weights.tensors.items()
                    if _CLASSIFIER.search(name) and tensor.shape), 0)
    name = {len(load_table(name)): name for name in _NETWORK_TABLES}.get(outputs)
    if weights.native or name is None:
        return None
    print(f"jiidm: {path}: predicts {outputs} classes, taken as those of the table {name}", file=sys.stderr)
    return name


def _read_classes(source: str | Path) -> dict[int, int]:
    """{index in the segmenter: our class} of a table of classes, or of a YAML or JSON file with names or numbers."""
    if str(source) in TABLES:
        return _mapping_of(load_table(source))
    path = Path(source)
    table = read_yaml(path)
    if not isinstance(table, dict):
        raise InputError(f"{path}: expected a table {{index in the segmenter: our class}}, such as {{0: road}}")
    if "classes" in table:
        return _mapping_of(load_table(path))
    # JSON has texts for keys
    return {int(key) if isinstance(key, str) and key.isdecimal() else key:
            CLASSES.index(value) if value in CLASSES else value for key, value in table.items()}


def _mapping_of(table: ClassTable) -> dict[int, int]:
    """{number in the table: our class} without the classes that the table ignores."""
    becomes = table.lookup(CLASSES)
    return {c.number: int(becomes[c.number]) for c in table.classes if not c.ignore}


def load_segmenter_network(path: str | Path, classes: Mapping[int, int] | None = None,
                           name: object = "the table of classes") -> Segformer:
    """Loads the `Segformer` of a file, in evaluation mode.

    Public weights are taken to be for pictures of 512x384.

    Args:
        path: as for `load_segmenter`.
        classes: {index in the segmenter: our class}; the network's outputs are these indices, in order.
        name: what errors call the table.

    Raises:
        InputError: another kind of file or network, missing, unexpected or mis-shaped tensors, NaN, or another number
            of classes than the label maps' without a table.
    """
    path = Path(path)
    weights = open_weights(path)
    if weights.native:
        if classes is not None:
            raise InputError(f"{path}: is a segmenter of jiidm, whose classes are known; leave out {name}")
        config, arrays = _read_own(path)
        outputs = config.num_classes
    else:
        arrays = rename(path, weights)
        config, outputs = infer_config(path, {name: value.shape for name, value in arrays.items()})
        if classes is not None:
            _select_outputs(arrays, classes, outputs, name)
            outputs = len(classes)
        elif outputs != len(CLASSES):
            raise InputError(f"{path}: predicts {outputs} classes, the label maps have {len(CLASSES)}; give weights "
                             f"that were trained for these, or a table of its classes (--segmenter-classes)")
    try:
        network = Segformer(config, outputs)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    assign(network, arrays, path)
    return network


def _select_outputs(arrays: dict[str, np.ndarray], classes: Mapping[int, int], outputs: int, name: object) -> None:
    """Keeps the rows of the classifier that the table of classes names; raises InputError where it does not fit."""
    whole = all(type(number) is int for item in classes.items() for number in item)
    if not whole or not classes or min(classes) < 0 or max(classes) >= outputs:
        raise InputError(f"{name}: expected indices 0..{outputs - 1}, the outputs of the segmenter, and classes "
                         f"0..{len(CLASSES) - 1} or their names; found {dict(list(classes.items())[:5])}")
    wrong = [c for c in classes.values() if not 0 <= c < len(CLASSES)]
    if wrong:
        raise InputError(f"{name}: class {wrong[0]}, expected 0..{len(CLASSES) - 1} or a name of these")
    for part in ("weight", "bias"):
        key = f"decode_head.classifier.{part}"
        if key in arrays and len(arrays[key]) == outputs:
            arrays[key] = arrays[key][sorted(classes)]


def save_known(path: str | Path, known: Known) -> None:
    """Writes what is known of a segmenter beside its file, with the SHA-256 of that file.

    Args:
        path: the file of weights; of segmenter.safetensors the JSON file is segmenter.json.
        known: what is known.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps({"sha256": source_of(path).sha256, **to_dict(known)}, indent=1)
    with written_whole(Path(path).with_suffix(".json")) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def _read_vocabulary(path: Path, num_classes: int) -> Vocabulary:
    """What the metadata of a segmenter say of its classes."""
    metadata = open_tensors(path)[1] if open_weights(path).native else {}
    try:
        return vocabulary_of(json.loads(metadata.get("classes", "null")), num_classes, path)
    except ValueError as error:
        raise InputError(f"{path}: its metadata's classes are no JSON ({error}); save it again") from error


def _read_known(path: Path, sha256: str, num_classes: int) -> Known | None:
    """The `Known` in the file beside the weights `path` of this SHA-256; None without a usable one."""
    path = path.with_suffix(".json")
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("sha256"), str):
            raise ValueError("no object with a sha256")
        if data.pop("sha256") != sha256:
            raise ValueError("it is of other weights, their sha256 differs")
        return _parse_known(data, num_classes)
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f"jiidm: {path}: left aside ({reason}); what the segmenter was trained for is not known",
              file=sys.stderr)
    return None


def _parse_known(data: dict, num_classes: int) -> Known:
    """The `Known` of a dictionary; raises ValueError for anything that `save_known` does not write."""
    names = [field.name for field in fields(Known)]
    if data.keys() != set(names):
        raise ValueError(f"expected sha256, {', '.join(names)} and no more")
    classes, photos, *scores = (data[name] for name in names)
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < num_classes for c in classes):
        raise ValueError(f"classes: expected a list of numbers 0..{num_classes - 1}")
    if photos is not None and (type(photos) is not int or photos < 1):
        raise ValueError("photos: expected how many, or null")
    if any(score is not None and (type(score) not in (int, float) or not 0 <= score <= 1) for score in scores):
        raise ValueError("mask_accuracy, mean_iou: expected a number 0..1 each, or null")
    if len({value is None for value in (photos, *scores)}) > 1:
        raise ValueError("photos, mask_accuracy, mean_iou: expected all three, or null for each")
    return Known(tuple(sorted(set(classes))), photos, *scores)


def assign(network: Any, arrays: Mapping[str, np.ndarray], source: str | Path) -> None:
    """Sets the parameters of an evaluation network, and puts it in evaluation mode.

    Args:
        network: a `Segformer` or the `Inception`.
        arrays: its parameters by name.
        source: what errors call the arrays.

    Raises:
        InputError: as `load_into`, and for NaN, Inf and negative variances.
    """
    check_numbers(arrays, source)
    load_into(network, arrays, source)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_grad()


def _read_own(path: Path) -> tuple[SegformerConfig, dict[str, np.ndarray]]:
    """The configuration and the parameters in a file of `save_segmenter`."""
    arrays, metadata = load_tensors(path)
    if metadata.get("kind") != KIND:
        raise InputError(f"{path}: holds the {metadata.get('kind')}, expected the segmenter of `jiidm train "
                         f"segmenter`, or public weights of SegFormer")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its metadata lacks a readable config; save it again") from error
    return from_dict(SegformerConfig, config, f"{path}, config"), arrays


# ------------------------------------------------------------------------------------------------------------ Inception

def load_inception(path: str | Path) -> Evaluator:
    """Loads the FID's `Inception`, without its classifier.

    Args:
        path: a copy of pt_inception-2015-12-05-6726825d.pth.

    Raises:
        InputError: any other file.
    """
    path = Path(path)
    weights = open_weights(path)
    tensors = {name: tensor for name, tensor in weights.tensors.items() if not _UNUSED.fullmatch(name)}
    network = Inception()
    if "Conv2d_1a_3x3.conv.weight" not in tensors:
        raise InputError(f"{path}: not the Inception-v3 of the FID (no Conv2d_1a_3x3.conv.weight in it); expected "
                         f"pt_inception-2015-12-05-6726825d.pth")
    classes = weights.tensors.get("fc.weight")
    if classes is not None and classes.shape[:1] != (1008,):
        what = f"of {classes.shape[0]} classes" if classes.shape else "with a single number for fc.weight"
        raise InputError(f"{path}: an Inception-v3 {what}, that of the FID has 1008 classes; expected "
                         f"pt_inception-2015-12-05-6726825d.pth")
    assign(network, {name: tensor.read().astype(np.float32) for name, tensor in tensors.items()}, path)
    jt.sync(network.parameters())
    return Evaluator(network, path.name, source_of(path).sha256)
