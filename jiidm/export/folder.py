"""The folder that `jiidm export` writes: a graph for each network, manifest.json, and the runtime that draws."""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jiidm import __version__
from jiidm.checkpoint import source_of
from jiidm.config import to_dict
from jiidm.data.labels import CLASSES, NO_CLASS, PALETTE
from jiidm.evaluation.weights import Evaluator, load_segmenter
from jiidm.export.autoencoder import decoder_graph, encoder_graph
from jiidm.export.graph import OPSET, Graph
from jiidm.export.segmenter import segmenter_graph
from jiidm.export.unet import condition_graph, decode_graph, encode_graph
from jiidm.generator import Generator, Paths
from jiidm.inference.ensemble import ensemble_weights
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder

FORMAT = "jiidm-onnx-1"
MANIFEST = "manifest.json"
RUNTIME = "jiidm_onnx"
PRECISIONS = ("fp32", "fp16")


def export(paths: Paths, folder: str | Path, precision: str = "fp32",
           ensemble: bool | list[float] = True) -> list[Path]:
    """Writes the networks of a `Generator`, and the package's segmenter, as ONNX files.

    Where there are several UNets, the mean is written and, as `last-...`, the last one.

    Args:
        paths: the weights, as in `Generator.from_checkpoint`.
        folder: the folder to write. Its files are replaced when all are ready.
        precision: what the networks compute in, "fp32" or "fp16". With fp32, weights that float16 holds exactly are
            stored in float16.
        ensemble: the mean of the UNets, as in `Generator.infer`.

    Returns:
        The files, the manifest last.

    Raises:
        InputError: weights that are missing, damaged or of another architecture, a network that is too large for an
            ONNX file, or a folder that cannot be written.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: expected {' or '.join(PRECISIONS)}")
    folder = output_folder(folder)
    generator = Generator.from_checkpoint(paths, "cpu", "fp32", reference=True)
    segmenter, half = load_segmenter(), precision == "fp16"
    weights = ensemble_weights(ensemble, len(generator.checkpoints))
    about = _describe(generator, segmenter, precision, weights)
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as place:
        ready, networks = Path(place), {}
        for name, graph in _graphs(generator, segmenter, half, weights):
            networks[name] = _write(ready / f"{name}.onnx", graph, metadata)
        manifest = {**about, "networks": networks}
        manifest["schedule"] = {**manifest["schedule"], "alphas_cumprod": generator.schedule.alphas_cumprod.tolist()}
        (ready / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        _copy_runtime(ready / RUNTIME)
        names = [str(path.relative_to(ready)) for path in ready.rglob("*") if path.is_file() and path.name != MANIFEST]
        (folder / MANIFEST).unlink(missing_ok=True)  # a folder whose files change has none
        (folder / RUNTIME).mkdir(exist_ok=True)
        for name in (*sorted(names), MANIFEST):
            os.replace(ready / name, folder / name)
    return [folder / name for name in (*sorted(names), MANIFEST)]


def _graphs(generator: Generator, segmenter: Evaluator, half: bool, weights: tuple[float, ...]
            ) -> Iterator[tuple[str, Graph]]:
    """File name and graph of each network, one after the other: a UNet of full size is in memory once."""
    autoencoder, unet = generator.networks(list(weights))
    factor, timesteps = generator.config.autoencoder.factor, len(generator.schedule)
    yield "encoder", encoder_graph(autoencoder, half)
    yield "decoder", decoder_graph(autoencoder, half)
    yield "segmenter", segmenter_graph(segmenter.network, half)
    last = ensemble_weights(False, len(generator.checkpoints))
    for prefix, chosen in {"unet": weights, "last": last}.items():
        if prefix == "last" and last == weights:
            continue
        _, unet = generator.networks(list(chosen))
        yield f"{prefix}-condition", condition_graph(unet, half, factor)
        yield f"{prefix}-encode", encode_graph(unet, half, timesteps)
        yield f"{prefix}-decode", decode_graph(unet, half)


def _describe(generator: Generator, segmenter: Evaluator, precision: str, weights: tuple[float, ...]) -> dict:
    """What every file says of itself, and the manifest: for JSON."""
    config = generator.config
    sources = [(generator.autoencoder_checkpoint, 1.0), *zip(generator.checkpoints, weights, strict=True)]
    return {
        "format": FORMAT, "jiidm": __version__, "opset": OPSET, "precision": precision,
        "picture": to_dict(config.image),
        "latents": {"channels": config.unet.in_channels, "factor": config.autoencoder.factor},
        "classes": [{"index": index, "name": name, "color": "#{:02x}{:02x}{:02x}".format(*PALETTE[index])}
                    for index, name in enumerate(CLASSES[:config.unet.num_classes])],
        "no_class": NO_CLASS,
        "segmenter": {"width": segmenter.network.config.width, "height": segmenter.network.config.height,
                      "sha256": segmenter.sha256},
        "schedule": to_dict(config.diffusion),
        "recipe": to_dict(config.inference),
        "ensemble": list(weights),
        "weights": [{"kind": c.kind, **to_dict(source_of(c.path, c.step, weight))} for c, weight in sources],
    }


def _write(path: Path, graph: Graph, metadata: dict[str, str]) -> dict:
    """Writes a graph; returns its entry of the manifest."""
    try:
        data = graph.model({**metadata, "network": path.stem}, __version__)
    except ValueError as error:
        raise InputError(f"{path.name}: {error}; export with --precision fp16, or a smaller network") from error
    path.write_bytes(data)
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest(), **graph.describe()}


def _copy_runtime(folder: Path) -> None:
    """Copies the modules of jiidm_onnx: the folder then needs no installation of jiidm."""
    spec = importlib.util.find_spec(RUNTIME)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {RUNTIME} is not installed beside jiidm; install jiidm again")
    folder.mkdir()
    for module in Path(spec.submodule_search_locations[0]).glob("*.py"):
        shutil.copyfile(module, folder / module.name)
