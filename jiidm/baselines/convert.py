"""Converts published weights of GauGAN or CLADE (`latest_net_G.pth`, `latest_net_E.pth`) into a checkpoint."""
import dataclasses
from pathlib import Path

import numpy as np

from jiidm.baselines.config import BaselineRun, GeneratorConfig, check_generator
from jiidm.baselines.networks import baseline_of
from jiidm.checkpoint import Checkpoint, save_checkpoint, source_of
from jiidm.config import ImageConfig
from jiidm.foreign.archive import open_weights
from jiidm.system.errors import InputError

_PREFIX = "module."
_UNUSED = ".num_batches_tracked"
_ORIGINAL = ".weight_orig"


def convert_published(path: str | Path, output: str | Path, encoder: str | Path | None = None, width: int = 256,
                      height: int = 256, upsampling: int = 5, half: bool = False, step: int = 0) -> BaselineRun:
    """Converts a generator and its style encoder; runs nothing that the files hold.

    Args:
        path: the generator's file.
        output: the checkpoint to write.
        encoder: the style encoder's file. None: the generator takes no style.
        width, height: of the pictures; the shapes do not show it. Published: 256x256, for Cityscapes 512x256.
        upsampling: doublings of the size, 5, or 6 for "more". A generator that takes a style, or of "most", shows it.
        half: float16 in place of float32.
        step: the training step.

    Returns:
        The `BaselineRun` that was found.

    Raises:
        InputError: the tensors are not exactly those of such a generator, or its encoder is missing.
    """
    files = [Path(path), *([Path(encoder)] if encoder else [])]
    tensors = {}
    for file in files:
        tensors.update(_read_tensors(file))
    generator = _infer_generator(path, tensors, width * height, upsampling, encoder)
    config = BaselineRun(ImageConfig(width, height), generator)
    check_generator(config.generator, config.image)
    _add_missing_vectors(tensors)
    checkpoint = Checkpoint(Path(path), config.generator.model, config, step, tensors)
    baseline_of(checkpoint)  # refuses tensors that are missing, unexpected or mis-shaped
    save_checkpoint(output, checkpoint.kind, tensors, config, step, "float16" if half else "float32",
                    "converted from published weights", [source_of(file, step) for file in files])
    return config


def _read_tensors(path):
    """The arrays of a file, float32, under our names."""
    weights = open_weights(path)
    if weights.native:
        raise InputError(f"{path}: is a checkpoint of jiidm already")
    # PyTorch up to 0.4.1 stores the normalised weight beside the original one
    return {name.removeprefix(_PREFIX): np.asarray(tensor.read(), np.float32)
            for name, tensor in weights.tensors.items()
            if not name.endswith(_UNUSED) and f"{name}_orig" not in weights.tensors}


def _infer_generator(path, tensors, area, upsampling, encoder):
    """The `GeneratorConfig` that has these tensors."""
    def shape(name, axes):
        if name not in tensors or tensors[name].ndim < axes or not tensors[name].size:
            raise InputError(f"{path}: no generator of GauGAN or CLADE: {name} is missing, empty, or not of "
                             f"{axes} axes")
        return tensors[name].shape

    ngf = shape("up_3.conv_1.weight_orig", 4)[0]
    found = {"ngf": ngf, "style_channels": 0, "upsampling": upsampling}
    if "head_0.norm_0.mlp_shared.0.weight" in tensors:
        found["spade_channels"], found["num_classes"] = shape("head_0.norm_0.mlp_shared.0.weight", 4)[:2]
    else:
        positional = "head_0.norm_0.class_specified_affine.dist_conv_w.weight" in tensors
        found["norm"] = "clade_icpe" if positional else "clade"
        found["num_classes"] = shape("head_0.norm_0.class_specified_affine.weight", 2)[0]
    first = shape("fc.weight", 2)
    if len(first) == 2:
        if not encoder:
            raise InputError(f"{path}: its generator takes a style of {first[1]} numbers; give the file of its encoder "
                             f"too")
        layers = sum(name.startswith("layer") and name.endswith(_ORIGINAL) for name in tensors)
        positions = max(1, first[0] // (16 * ngf))
        found |= {"style_channels": first[1], "encoder_channels": shape("layer1.0.weight_orig", 4)[0],
                  "style_size": 4 * 2**layers, "upsampling": ((area // positions).bit_length() - 1) // 2}
    elif encoder:
        raise InputError(f"{encoder}: the generator {path} takes no style; leave the encoder out")
    if "up_4.conv_0.weight_orig" in tensors:
        found["upsampling"] = 7
    return dataclasses.replace(GeneratorConfig(), **found)


def _add_missing_vectors(tensors):
    """Computes the second vector of each power iteration from the first one, where older files lack it."""
    for name in [name for name in tensors if name.endswith(_ORIGINAL)]:
        stem = name.removesuffix("_orig")
        if f"{stem}_u" in tensors and f"{stem}_v" not in tensors:
            matrix = tensors[name].reshape(len(tensors[name]), -1)
            if tensors[f"{stem}_u"].shape == matrix.shape[:1]:
                vector = matrix.T @ tensors[f"{stem}_u"]
                tensors[f"{stem}_v"] = vector / max(np.linalg.norm(vector), 1e-12)
