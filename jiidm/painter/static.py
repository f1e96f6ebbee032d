"""The painter's page without a server: a folder that any static host can serve (docs/painter.md).

The browser computes: the page's own modules (`page/local/`) run the networks, exported as ONNX files, on
onnxruntime-web. That package is fetched from the npm registry when the folder is built.
"""
import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from jiidm import __version__
from jiidm.data.classes import colored_tables
from jiidm.data.colors import hex_of
from jiidm.data.labels import CLASSES
from jiidm.data.pictures import fit_photo, read_photo
from jiidm.inference.color_transfer import fixed_rotations
from jiidm.painter.server import PAGE
from jiidm.painter.uploads import decode_any_map, reader_of
from jiidm.painter.worker import png_of
from jiidm.system.errors import InputError, SetupError
from jiidm.system.files import output_folder, written_whole

RUNTIME = "onnxruntime-web-1.30.0"
_RUNTIME_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_RUNTIME_FILES = (
    "ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm",
)
_FILES = "files.json"
_POLICY = "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'none'"


def build_page(networks, model, gallery, output, runtime=None):
    """Writes the folder.

    Args:
        networks: a folder of ONNX files with its manifest.json, as `jiidm export` writes it.
        model: what an engine's `describe` says of the same weights.
        gallery: the `Gallery`.
        output: the folder to write. A page that is there is replaced when the new one is ready.
        runtime: the npm package onnxruntime-web, a .tgz (None: it is fetched with npm, and kept for the next time).

    Returns:
        The files: a dict from their path in the folder to {"bytes", "sha256"}.

    Raises:
        InputError: a folder of other files, one that cannot be written, a package that is not the pinned one, or a
            recipe with keys that the page does not compute.
        SetupError: npm is missing, or does not reach its registry.
    """
    output = Path(output)
    if output.is_dir() and any(output.iterdir()) and not (output / _FILES).is_file():
        raise InputError(f"{output}: has other files than a page; choose a new or an empty folder")
    recipe = json.loads((Path(networks) / "manifest.json").read_text("utf-8"))["recipe"]
    others = [key for key in ("canvas", "color_by_class") if recipe.get(key)]
    others += ["scale"] * any(each.get("scale", 1) != 1 for each in recipe["rounds"])
    if others:
        raise InputError(f"the recipe of these weights has {', '.join(others)}, which the page does not compute; use "
                         f"jiidm paint, or weights whose recipe has none")
    output_folder(output)
    packed = _check_runtime(Path(runtime)) if runtime else _fetch_runtime()
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.absolute().parent) as place:
        ready = Path(place) / "page"
        shutil.copytree(PAGE, ready / "page", ignore=shutil.ignore_patterns("index.html", "sw.js"))
        shutil.copytree(networks, ready / "weights", ignore=shutil.ignore_patterns("jiidm_onnx"))
        _unpack_runtime(packed, ready / "ort")
        files = _copy_gallery(gallery, ready, model)
        _write_json(ready / "model.json", {
            **model, **_name_files(gallery.describe(), files), "name": "jiidm", "version": __version__,
            "color_tables": color_tables(), "rotations": [rotation.tolist() for rotation in fixed_rotations()],
            "color_by_class": False,  # its colour transfers take pictures as wholes
        })
        (ready / "index.html").write_text(_static_index(), "utf-8")
        paths = [path for path in sorted(ready.rglob("*")) if path.is_file()]
        entries = {path.relative_to(ready).as_posix(): _entry(path) for path in paths}
        version = hashlib.sha256(json.dumps(entries).encode()).hexdigest()[:16]
        _write_json(ready / _FILES, {"version": version, "files": entries})
        worker = (PAGE / "local" / "sw.js").read_text("utf-8").replace("@VERSION@", version)
        (ready / "sw.js").write_text(worker, "utf-8")
        try:
            os.rename(output, Path(place) / "old")
            os.rename(ready, output)
        except OSError as error:
            raise InputError(f"{output}: cannot be replaced ({error.strerror}); choose another folder") from error
    return entries


def color_tables():
    """The tables of colour-coded label maps, for the page: names to {"#rrggbb": class}."""
    return {table.name: {hex_of(each.color): CLASSES.index(each.becomes) for each in table.classes
                         if each.color and not each.ignore} for table in colored_tables()}


def _copy_gallery(gallery, ready, model):
    """Copies styles and label maps, the maps at the canvas size; returns their paths in the folder by kind and name.

    Styles are there twice: to be seen, and at the networks' size as PNG, since browsers decode a JPEG in their own way.
    """
    canvas, size, reader, paths = model["canvas"], model["picture"], reader_of(model), {}
    (ready / "styles" / "fitted").mkdir(parents=True)
    (ready / "examples").mkdir()
    for name, path in gallery.styles.items():
        paths["styles", name] = f"styles/{path.name}"
        shutil.copyfile(path, ready / "styles" / path.name)
        fitted = fit_photo(read_photo(path), size["width"], size["height"])
        (ready / "styles" / "fitted" / f"{name}.png").write_bytes(png_of(fitted))
    for name, path in gallery.maps.items():
        paths["examples", name] = f"examples/{name}.png"
        labels, _ = decode_any_map(path.read_bytes(), canvas["width"], canvas["height"], reader)
        (ready / "examples" / f"{name}.png").write_bytes(png_of(labels))
    return paths


def _name_files(described, paths):
    """The gallery's description with the file of each style and example."""
    return {kind: [{**entry, "file": paths[kind, entry["name"]]} for entry in described[kind]]
            for kind in ("styles", "examples")}


def _static_index():
    """The page with the engine in the browser, and with the policy that a server would send as a header."""
    text = (PAGE / "index.html").read_text("utf-8")
    text = text.replace("<head>", f'<head>\n<meta http-equiv="Content-Security-Policy" content="{_POLICY}">', 1)
    return text.replace("<body ", '<body data-engine="./local/engine.js" ', 1)


def _entry(path):
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_json(path, values):
    path.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def _fetch_runtime():
    """The path of the pinned package; npm fetches it where it is not kept yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jiidm"
    kept = cache / f"{RUNTIME}.tgz"
    if kept.is_file():
        return _check_runtime(kept)
    output_folder(cache)
    name, _, version = RUNTIME.rpartition("-")
    with tempfile.TemporaryDirectory() as place:
        try:
            subprocess.run(["npm", "pack", f"{name}@{version}", "--pack-destination", place], check=True,
                           capture_output=True, text=True, timeout=600)
        except FileNotFoundError as error:
            raise SetupError(f"npm is not installed, which fetches {name}; install it, or give the package's .tgz "
                             f"with --runtime") from error
        except subprocess.SubprocessError as error:
            lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            raise SetupError(f"npm does not fetch {name} {version} ({lines[0]}); give the package's .tgz with "
                             f"--runtime") from error
        with written_whole(kept) as path:
            shutil.copyfile(Path(place) / kept.name, path)
    return _check_runtime(kept)


def _check_runtime(path):
    """The path, after its hash was compared; raises InputError."""
    try:
        digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); expected {RUNTIME}.tgz from npm") from error
    if digest != _RUNTIME_SHA512:
        raise InputError(f"{path}: is damaged or another package (sha512-{digest[:12]}...); expected {RUNTIME}.tgz, "
                         f"sha512-{_RUNTIME_SHA512[:12]}...; remove it and fetch it again")
    return path


def _unpack_runtime(path, folder):
    folder.mkdir()
    with tarfile.open(path) as archive:
        for name in _RUNTIME_FILES:
            (folder / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
