"""What several test files use."""
import contextlib
import gc
import io
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import yaml

from jiidm.commands.main import main
from jiidm.config import AutoencoderConfig, Config, ImageConfig, UNetConfig, to_dict
from jiidm.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(__file__).resolve().parent / "data" / "reference"

# the smallest networks that have every part: whoever takes these shares their compiled kernels
TINY = Config(
    image=ImageConfig(64, 48),
    autoencoder=AutoencoderConfig(ch=16, num_res_blocks=1, n_embed=64, norm_groups=4),
    unet=UNetConfig(model_channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(2,),
                    head_channels=16, spade_channels=8, norm_groups=4),
)


def tiny_yaml(path, **sections):
    """Writes the YAML file `path` of `TINY`'s networks with further sections: dicts of their keys."""
    networks = {name: to_dict(getattr(TINY, name)) for name in ("image", "autoencoder", "unet")}
    path.write_text(yaml.safe_dump({**networks, **sections}))


def reference(name):
    """Returns the arrays of the reference file `name`.npz as a dict."""
    with np.load(REFERENCE / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def reference_shapes(kind):
    """Returns {parameter name: shape as a list} of the published full-size network of `kind`."""
    return json.loads((REFERENCE / "keys.json").read_text())[kind]


def made_up(module, salt):
    """Sets the parameters of a network to the reference's made-up weights, in evaluation mode; returns the network."""
    from jiidm.system.runtime import jt

    for name, parameter in module.named_parameters():
        random = np.random.RandomState((zlib.crc32(name.encode()) + salt) % 2**32)
        values = random.standard_normal(tuple(parameter.shape)).astype("float32")
        if values.ndim > 1:
            values /= np.float32(np.sqrt(np.prod(values.shape[1:])))
        else:
            values = name.endswith("weight") + np.float32(0.1) * values
        parameter.assign(jt.array(values.astype("float32")))
    module.eval()
    return module


def numbers(value):
    """Returns a Jittor or numpy array as numpy float64."""
    return np.asarray(value.numpy() if hasattr(value, "numpy") else value, np.float64)


def relative_error(actual, expected):
    """Returns the largest difference of two arrays of one shape, as a share of the largest expected value."""
    actual, expected = numbers(actual), numbers(expected)
    assert actual.shape == expected.shape
    return np.abs(actual - expected).max() / np.abs(expected).max()


def refused(call, *words, error=InputError):
    """Checks that the call raises an `error` of one line with these words."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text


def resident_bytes():
    """Returns how much memory this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_tool(name, *arguments, modules=None):
    """Runs tools/`name`.py with this Python and the package of this checkout; returns the finished process.

    `modules` is a folder of modules that stand in for installed ones.
    """
    path = os.pathsep.join(filter(None, [modules and str(modules), str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, ROOT / "tools" / f"{name}.py", *map(str, arguments)],
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)


def run_main(command, *arguments):
    """Runs `jiidm command arguments` in this process; returns what `run_tool` does, without the start of a process.

    For tests of exit codes, files and messages. What a process inherits or leaves behind needs `run_tool`.
    """
    argv, out, errors = ["jiidm", command, *map(str, arguments)], io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", list(argv)), contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors), \
            pytest.raises(SystemExit) as ended:
        main()
    return subprocess.CompletedProcess(argv, ended.value.code, out.getvalue(), errors.getvalue())


def write_random_weights(folder, config, seeds):
    """Writes an autoencoder and a UNet for each of the seeds, of random weights, into a new folder."""
    from jiidm.checkpoint import arrays_of, save_checkpoint
    from jiidm.models.autoencoder import Autoencoder
    from jiidm.models.unet import UNet

    folder.mkdir()
    unets = [("unet", UNet(config.unet), seed) for seed in seeds]
    for kind, network, seed in [("autoencoder", Autoencoder(config.autoencoder), 0), *unets]:
        random = np.random.default_rng(seed)
        tensors = {name: (random.standard_normal(v.shape) / np.sqrt(np.prod(v.shape[1:]) if v.ndim > 1 else 4))
                   .astype(np.float32) for name, v in arrays_of(network).items()}
        save_checkpoint(folder / f"{kind}-{seed}.safetensors", kind, tensors, config, seed + 1)
