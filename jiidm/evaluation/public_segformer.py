"""Public weights of SegFormer (Xie et al. 2021) under the names of jiidm."""
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jiidm.evaluation.segformer import SegformerConfig
from jiidm.foreign.archive import Weights
from jiidm.system.errors import InputError

# Public names of SegFormer's parameters and ours. The authors' release has those of mmsegmentation: it counts stages
# from 1 ({s}) and keeps keys and values in one tensor, `kv`. {n} is a number from 0.
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
_UNUSED = re.compile(r"(.*\.)?(num_batches_tracked|conv_seg\.(weight|bias))")
_PREFIXES = ("", "state_dict.", "model.", "module.", "state_dict.module.")


def _compile_names(table: tuple[tuple[str, str], ...]) -> list[tuple[re.Pattern, str, int]]:
    """The table as regular expressions of public names, our names to format, and what the first number is ahead."""
    return [(re.compile(re.escape(theirs).replace(r"\{s\}", _STAGE).replace(r"\{n\}", _NUMBER)),
             ours.replace("{s}", "{}").replace("{n}", "{}"), int("{s}" in theirs)) for theirs, ours in table]


_PATTERNS = _compile_names(_AUTHORS) + _compile_names(_HUGGING_FACE)


def segformer_name(public: str) -> str | None:
    """Returns our name of a public SegFormer's parameter; None for an unknown name.

    For a tensor that holds keys and values, `key+value` stands in the name.
    """
    stem, _, kind = public.rpartition(".")
    for pattern, ours, ahead in _PATTERNS:
        match = pattern.fullmatch(stem)
        if match:
            numbers = [int(number) - (ahead if i == 0 else 0) for i, number in enumerate(match.groups())]
            return f"{ours.format(*numbers)}.{kind}"
    return None


def rename(path: Path, weights: Weights) -> dict[str, np.ndarray]:
    """Returns the tensors of public weights under our names, float32; raises InputError where they are no SegFormer's.
    """
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
        ours = segformer_name(short) or short  # `load_into` refuses an unknown name
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


def infer_config(path: Path, shapes: Mapping[str, tuple]) -> tuple[SegformerConfig, int]:
    """Returns the configuration that has these shapes, and the number of outputs.

    Heads have 32 channels, and 64 from B1 on, as in the paper.
    """
    def count(pattern):
        found = [int(match[1]) for name in shapes if (match := re.match(pattern, name))]
        return max(found, default=-1) + 1

    try:
        stages = count(r"encoder\.patch_embeddings\.(\d+)\.")
        dims = tuple(shapes[f"encoder.patch_embeddings.{i}.proj.weight"][0] for i in range(stages))
        ratios = tuple(shapes.get(f"encoder.block.{i}.0.attention.sr.weight", (0, 0, 1))[2] for i in range(stages))
        outputs, width = shapes["decode_head.classifier.weight"]
        hidden = shapes["encoder.block.0.0.mlp.dense1.weight"][0]
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{path}: a SegFormer without encoder or decoder ({error} is missing); expected the whole "
                         f"network") from error
    head = dims[0] if dims else 0
    return SegformerConfig(
        embed_dims=dims, depths=tuple(count(rf"encoder\.block\.{i}\.(\d+)\.") for i in range(stages)),
        heads=tuple(max(1, c // head) if head else 1 for c in dims), sr_ratios=ratios,
        mlp_ratio=hidden // max(1, head), decoder_dim=width,
    ), outputs
