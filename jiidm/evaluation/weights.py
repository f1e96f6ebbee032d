"""The evaluator networks' files of weights: the project's own, the public SegFormer's, the FID's Inception."""
import json
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from jiidm.checkpoint import FORMAT, load_into, load_tensors, save_tensors, source_of
from jiidm.config import from_dict, to_dict
from jiidm.data.labels import CLASSES
from jiidm.evaluation.inception import Inception
from jiidm.evaluation.segformer import Segformer, SegformerConfig
from jiidm.foreign.archive import open_weights
from jiidm.system.errors import InputError
from jiidm.system.files import written_whole
from jiidm.system.runtime import jt

KIND = "segmenter"
DEFAULT_SEGMENTER = Path(__file__).parent.parent / "weights" / "evaluator" / "segmenter.safetensors"

# Public names of SegFormer's parameters and ours: of the authors' release, as mmsegmentation had it, and of Hugging
# Face. `{}` is a number; the authors count stages from 1, and keep keys and values in one tensor, `kv`.
_NUMBER, _STAGE = r"(\d+)", r"([1-9])"
_AUTHORS = (
    ("backbone.patch_embed{s}.proj", "encoder.patch_embeddings.{s}.proj"),
    ("backbone.patch_embed{s}.norm", "encoder.patch_embeddings.{s}.layer_norm"),
    ("backbone.block{s}.{n}.norm1", "encoder.block.{s}.{n}.layer_norm_1"),
    ("backbone.block{s}.{n}.norm2", "encoder.block.{s}.{n}.layer_norm_2"),
    ("backbone.block{s}.{n}.attn.q", "encoder.block.{s}.{n}.attention.query"),
    ("backbone.block{s}.{n}.attn.kv", "encoder.block.{s}.{n}.attention.key+value"),
    ("backbone.block{s}.{n}.attn.proj", "encoder.block.{s}.{n}.attention.dense"),
    ("backbone.block{s}.{n}.attn.sr", "encoder.block.{s}.{n}.attention.sr"),
    ("backbone.block{s}.{n}.attn.norm", "encoder.block.{s}.{n}.attention.layer_norm"),
    ("backbone.block{s}.{n}.mlp.fc1", "encoder.block.{s}.{n}.mlp.dense1"),
    ("backbone.block{s}.{n}.mlp.dwconv.dwconv", "encoder.block.{s}.{n}.mlp.dwconv"),
    ("backbone.block{s}.{n}.mlp.fc2", "encoder.block.{s}.{n}.mlp.dense2"),
    ("backbone.norm{s}", "encoder.layer_norm.{s}"),
    ("decode_head.linear_c{s}.proj", "decode_head.linear_c.{s}"),
    ("decode_head.linear_fuse.conv", "decode_head.linear_fuse"),
    ("decode_head.linear_fuse.bn", "decode_head.batch_norm"),
    ("decode_head.linear_pred", "decode_head.classifier"),
)
_HUGGING_FACE = (
    ("segformer.encoder.patch_embeddings.{n}.proj", "encoder.patch_embeddings.{n}.proj"),
    ("segformer.encoder.patch_embeddings.{n}.layer_norm", "encoder.patch_embeddings.{n}.layer_norm"),
    ("segformer.encoder.block.{n}.{n}.layer_norm_1", "encoder.block.{n}.{n}.layer_norm_1"),
    ("segformer.encoder.block.{n}.{n}.layer_norm_2", "encoder.block.{n}.{n}.layer_norm_2"),
    ("segformer.encoder.block.{n}.{n}.attention.self.query", "encoder.block.{n}.{n}.attention.query"),
    ("segformer.encoder.block.{n}.{n}.attention.self.key", "encoder.block.{n}.{n}.attention.key"),
    ("segformer.encoder.block.{n}.{n}.attention.self.value", "encoder.block.{n}.{n}.attention.value"),
    ("segformer.encoder.block.{n}.{n}.attention.self.sr", "encoder.block.{n}.{n}.attention.sr"),
    ("segformer.encoder.block.{n}.{n}.attention.self.layer_norm", "encoder.block.{n}.{n}.attention.layer_norm"),
    ("segformer.encoder.block.{n}.{n}.attention.output.dense", "encoder.block.{n}.{n}.attention.dense"),
    ("segformer.encoder.block.{n}.{n}.mlp.dense1", "encoder.block.{n}.{n}.mlp.dense1"),
    ("segformer.encoder.block.{n}.{n}.mlp.dwconv.dwconv", "encoder.block.{n}.{n}.mlp.dwconv"),
    ("segformer.encoder.block.{n}.{n}.mlp.dense2", "encoder.block.{n}.{n}.mlp.dense2"),
    ("segformer.encoder.layer_norm.{n}", "encoder.layer_norm.{n}"),
    ("decode_head.linear_c.{n}.proj", "decode_head.linear_c.{n}"),
    ("decode_head.linear_fuse", "decode_head.linear_fuse"),
    ("decode_head.batch_norm", "decode_head.batch_norm"),
    ("decode_head.classifier", "decode_head.classifier"),
)
_UNUSED = re.compile(r"(.*\.)?(num_batches_tracked|conv_seg\.(weight|bias))|fc\.(weight|bias)|AuxLogits\..*")
_PREFIXES = ("", "state_dict.", "model.", "module.", "state_dict.module.")


@dataclass(frozen=True)
class Known:
    """What a segmenter is known to be worth: `classes` are the numbers of those that its training photos had, in
    order; `mask_accuracy` and `mean_iou`, 0..1, are of all pixels of `photos` held-out photos, and None, all three,
    where nobody measured it on such."""

    classes: tuple[int, ...]
    photos: int | None = None
    mask_accuracy: float | None = None
    mean_iou: float | None = None


@dataclass(frozen=True)
class EvaluatorFile:
    """A network that is ready to evaluate, what its file is (name and SHA-256), and a segmenter's `Known` or None."""

    network: object
    file: str
    sha256: str
    known: Known | None = None


# ------------------------------------------------------------------------------------------------------------ segmenter

def save_segmenter(path, arrays, config, step, note="", dtype="float16"):
    """Writes the parameters (names to arrays) of a `Segformer` of `config` as safetensors of float16 or float32.

    Raises InputError for NaN and for numbers beyond the range of `dtype`, and where it cannot be written.
    """
    with np.errstate(over="ignore"):
        arrays = {name: np.ascontiguousarray(value, dtype) for name, value in arrays.items()}
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise InputError(f"{path}: NaN or a number too large for {dtype} in {name}; not written")
    metadata = {"format": FORMAT, "kind": KIND, "config": json.dumps(to_dict(config)), "step": str(step), "note": note}
    save_tensors(path, arrays, metadata)


def load_segmenter(path=None):
    """The `EvaluatorFile` of a `Segformer` in evaluation mode: the package's own, one of `save_segmenter`, or public
    weights in the names of the authors' release or of Hugging Face, as PyTorch or safetensors files.

    Its `known` comes from the file of `save_known` beside it; it is None without one, and where that one is broken or
    of other weights, which is said in a line on stderr. Raises InputError as `load_segmenter_network`.
    """
    if path is None and not DEFAULT_SEGMENTER.is_file():
        raise InputError(f"{DEFAULT_SEGMENTER}: the package has no segmenter here; give a file with --segmenter")
    path = Path(path or DEFAULT_SEGMENTER)
    network, sha256 = load_segmenter_network(path), source_of(path).sha256
    return EvaluatorFile(network, path.name, sha256, _known(path, sha256))


def load_segmenter_network(path):
    """The `Segformer` alone of a file that `load_segmenter` takes, in evaluation mode.

    Public weights are taken for pictures of 512x384. Raises InputError for another kind of file or network, missing,
    further or mis-shaped tensors, NaN, and other classes than the label maps'.
    """
    path = Path(path)
    weights = open_weights(path)
    if weights.native:
        config, arrays = _own(path, weights)
    else:
        arrays = _renamed(path, weights)
        config = _inferred(path, {name: value.shape for name, value in arrays.items()})
    try:
        network = Segformer(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    assign(network, arrays, path)
    return network


def save_known(path, known):
    """Writes the `Known` of the segmenter in the file `path` beside it, as JSON with the SHA-256 of that file.

    Of segmenter.safetensors it is segmenter.json. Raises InputError where it cannot be written.
    """
    text = json.dumps({"sha256": source_of(path).sha256, **to_dict(known)}, indent=1)
    with written_whole(_beside(path)) as temporary:
        temporary.write_text(text + "\n", "utf-8")


def _beside(path):
    return Path(path).with_suffix(".json")


def _known(path, sha256):
    """The `Known` in the file beside the weights `path` of this SHA-256; None without a usable one."""
    path = _beside(path)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text("utf-8"))
        if not isinstance(data, dict) or not isinstance(data.get("sha256"), str):
            raise ValueError("no object with a sha256")
        if data.pop("sha256") != sha256:
            raise ValueError("it is of other weights, their sha256 differs")
        return _checked(data)
    except (OSError, ValueError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        print(f"jiidm: {path}: left aside ({reason}); what the segmenter was trained for is not known",
              file=sys.stderr)
    return None


def _checked(data):
    """The `Known` of a dictionary; raises ValueError for anything else than `save_known` writes."""
    names = [field.name for field in fields(Known)]
    if data.keys() != set(names):
        raise ValueError(f"expected sha256, {', '.join(names)} and no more")
    classes, photos, *shares = (data[name] for name in names)
    if not isinstance(classes, list) or not all(type(c) is int and 0 <= c < len(CLASSES) for c in classes):
        raise ValueError(f"classes: expected a list of numbers 0..{len(CLASSES) - 1}")
    if photos is not None and (type(photos) is not int or photos < 1):
        raise ValueError("photos: expected how many, or null")
    if any(share is not None and (type(share) not in (int, float) or not 0 <= share <= 1) for share in shares):
        raise ValueError("mask_accuracy, mean_iou: expected a number 0..1 each, or null")
    if len({value is None for value in (photos, *shares)}) > 1:
        raise ValueError("photos, mask_accuracy, mean_iou: expected all three, or null for each")
    return Known(tuple(sorted(set(classes))), photos, *shares)


def assign(network, arrays, source):
    """Sets the parameters of an evaluator network, for evaluation; raises InputError as `load_into`, and for NaN."""
    for name, value in arrays.items():
        if not np.isfinite(value).all() or name.endswith("running_var") and (value < 0).any():
            raise InputError(f"{source}: NaN, Inf or a negative variance in {name}; the weights cannot be used")
    load_into(network, arrays, source)
    network.eval()
    for parameter in network.parameters():
        parameter.stop_grad()


def _own(path, weights):
    arrays, metadata = load_tensors(path)
    if metadata.get("kind") != KIND:
        raise InputError(f"{path}: holds the {metadata.get('kind')}, expected the segmenter of tools/train.py "
                         f"segmenter, or public weights of SegFormer")
    try:
        config = json.loads(metadata["config"])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its metadata lacks a readable config; save it again") from error
    return from_dict(SegformerConfig, config, f"{path}, config"), arrays


def _patterns(table):
    """The table as (regular expression, how to write our name with `{}` for the numbers in order) pairs."""
    found = []
    for theirs, ours in table:
        pattern = re.escape(theirs).replace(r"\{s\}", _STAGE).replace(r"\{n\}", _NUMBER)
        shift = theirs.count("{s}")
        found.append((re.compile(pattern), ours.replace("{s}", "{}").replace("{n}", "{}"), shift))
    return found


_PATTERNS = _patterns(_AUTHORS) + _patterns(_HUGGING_FACE)


def segformer_name(public):
    """Our name of a public SegFormer's parameter, with `key+value` for the two in one; None for an unknown name."""
    stem, _, kind = public.rpartition(".")
    for pattern, ours, shifted in _PATTERNS:
        match = pattern.fullmatch(stem)
        if match:
            numbers = [int(number) - (shifted and i == 0) for i, number in enumerate(match.groups())]
            return f"{ours.format(*numbers)}.{kind}"
    return None


def _renamed(path, weights):
    """The tensors of public weights under our names, float32."""
    prefix = next((p for p in _PREFIXES if any(
        segformer_name(name.removeprefix(p)) for name in weights.tensors if name.startswith(p))), None)
    if prefix is None:
        some = ", ".join(list(weights.tensors)[:3])
        raise InputError(f"{path}: no SegFormer in it, none of its {len(weights.tensors)} tensors has a name of one; "
                         f"it has {some}")
    arrays = {}
    for name, tensor in weights.tensors.items():
        short = name.removeprefix(prefix)
        if _UNUSED.fullmatch(short):
            continue
        ours = segformer_name(short) or short  # an unknown name is told by `load_into`
        joint = "key+value" in ours
        if joint and (not tensor.shape or tensor.shape[0] % 2):
            raise InputError(f"{path}: {name} of shape {tuple(tensor.shape)}; expected keys and values in one tensor, "
                             f"an even number of rows")
        values = tensor.read().astype(np.float32)
        if joint:
            for part, half in zip(("key", "value"), np.split(values, 2), strict=True):
                arrays[ours.replace("key+value", part)] = half
        else:
            arrays[ours] = values
    for name in ("decode_head.linear_fuse.weight", "decode_head.classifier.weight"):  # 1x1 convolutions there
        if name in arrays and arrays[name].shape[2:] == (1, 1):
            arrays[name] = arrays[name][:, :, 0, 0]
    return arrays


def _inferred(path, shapes):
    """The `SegformerConfig` that has these shapes; heads are of 32 channels, and of 64 from B1 on, as in the paper."""
    def number(pattern):
        found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    try:
        stages = number(r"encoder\.patch_embeddings\.(\d+)\.")
        dims = tuple(shapes[f"encoder.patch_embeddings.{i}.proj.weight"][0] for i in range(stages))
        ratios = tuple(shapes.get(f"encoder.block.{i}.0.attention.sr.weight", (0, 0, 1))[2] for i in range(stages))
        classes, width = shapes["decode_head.classifier.weight"]
        hidden = shapes["encoder.block.0.0.mlp.dense1.weight"][0]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: a SegFormer without encoder or decoder ({error} is missing); expected the whole "
                         f"network, trained for {len(CLASSES)} classes") from error
    if classes > len(CLASSES):
        raise InputError(f"{path}: predicts {classes} classes, the label maps have {len(CLASSES)}; expected weights "
                         f"that were trained for these")
    head = dims[0] if dims else 0
    return SegformerConfig(
        classes, dims, tuple(number(rf"encoder\.block\.{i}\.(\d+)\.") for i in range(stages)),
        tuple(max(1, c // head) if head else 1 for c in dims), ratios, hidden // max(1, head), width,
    )


# ------------------------------------------------------------------------------------------------------------ Inception

def load_inception(path):
    """The `EvaluatorFile` of the FID's `Inception` from the user's copy of pt_inception-2015-12-05-6726825d.pth.

    The classifier, which the FID does without, is left out. Raises InputError for any other file.
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
    return EvaluatorFile(network, path.name, source_of(path).sha256)
