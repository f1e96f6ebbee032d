"""The folder of `jiidm export`: its manifest, and its networks as onnxruntime sessions."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jiidm_onnx.errors import InputError
from jiidm_onnx.model_file import check_model

FORMAT = "jiidm-onnx-1"
MANIFEST = "manifest.json"


class Networks:
    """The networks of a folder. A file is read, checked and loaded when its network first runs.

    `manifest` is the content of manifest.json.

    Args:
        folder: what `jiidm export` wrote.
        threads: of onnxruntime (None: one a core).
        providers: onnxruntime's execution providers, the first that works is used.

    Raises:
        InputError: the folder has no readable manifest.
    """

    def __init__(self, folder: str | Path, threads: int | None = None,
                 providers: Sequence[str] = ("CPUExecutionProvider",)):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
        self._threads, self._providers = threads, list(providers)
        self._sessions: dict[str, Any] = {}

    def run(self, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs a network, such as "encoder"; returns its outputs by name."""
        session = self.load(name)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    def load(self, name: str) -> Any:
        """The onnxruntime session of a network.

        Raises:
            InputError: its file is missing, damaged, of another export, too old, or cannot be loaded.
        """
        if name not in self._sessions:
            self._sessions[name] = self._load(name)
        return self._sessions[name]

    def _load(self, name):
        import onnxruntime

        entry = self.manifest["networks"].get(name)
        if entry is None:
            raise InputError(f"{self.folder / MANIFEST}: names no network {name}; export the folder again")
        path = self.folder / entry["file"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); copy the whole folder again") from error
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            raise InputError(f"{path}: damaged or of another export, its SHA-256 is not the one in {MANIFEST}; copy "
                             f"the whole folder again")
        check_model(path, data)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        options.log_severity_level = 3  # errors alone: they also come as exceptions
        try:
            session = onnxruntime.InferenceSession(data, options, providers=self._providers)
        except Exception as error:  # noqa: BLE001 - onnxruntime's own exceptions have no common base
            reason = str(error).splitlines()[0]
            raise InputError(f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({reason})") from error
        for kind, found in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
            expected = [value["name"] for value in entry[kind]]
            if [value.name for value in found] != expected:
                raise InputError(f"{path}: is another network, its {kind} are not {', '.join(expected[:4])} as "
                                 f"{MANIFEST} says; export the folder again")
        return session


def _read_manifest(path: Path) -> dict:
    """The checked manifest."""
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected a folder that `jiidm export` wrote") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error}); copy the folder again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of format {FORMAT}; export the folder again with this version")
    try:
        _check_manifest(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: damaged ({reason}); copy or export the folder again") from error
    return manifest


def _check_manifest(manifest):
    """Raises one of several errors where a part that is read later is missing or of another type."""
    factor, picture, segmenter = manifest["latents"]["factor"], manifest["picture"], manifest["segmenter"]
    for side in (factor, *(part[key] for part in (picture, segmenter) for key in ("width", "height"))):
        if type(side) is not int or side < 1:
            raise ValueError(f"a side of {side!r}")
    if picture["width"] % factor or picture["height"] % factor:
        raise ValueError(f"a picture of {picture['width']}x{picture['height']}, no multiple of {factor}")
    if not all(isinstance(entry["name"], str) for entry in manifest["classes"]):
        raise ValueError("a class without a name")
    alphas = np.asarray(manifest["schedule"]["alphas_cumprod"], np.float64)
    if alphas.ndim != 1 or len(alphas) < 2 or not (np.diff([1, *alphas]) < 0).all() or alphas[-1] < 0 or \
            manifest["schedule"]["prediction"] not in ("epsilon", "v"):
        raise ValueError("no schedule")
    if not isinstance(manifest["recipe"], dict):
        raise ValueError("no recipe")
    np.asarray(manifest["ensemble"], np.float64)
    for entry in manifest["networks"].values():
        name = entry["file"]
        if name != Path(name).name or not name.endswith(".onnx"):
            raise ValueError(f"a file {name!r} outside the folder")
        if not all(isinstance(value["name"], str) for value in (*entry["inputs"], *entry["outputs"])):
            raise ValueError("a network without names")
        str(entry["sha256"])
