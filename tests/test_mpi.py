"""Training in several processes (mpirun): the same losses as in one, and none outlives another's error."""
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, run_main, tiny_yaml

from jiidm.baselines.networks import load_baseline
from jiidm.checkpoint import load_checkpoint
from jiidm.training.state import read_state

pytestmark = pytest.mark.mpi

SECTIONS = {
    "train_autoencoder": {
        "steps": 20, "batch": 3, "crop": 32, "learning_rate": 1e-4, "quantize_from": 4, "discriminator_start": 6,
        "discriminator_channels": 8, "discriminator_layers": 1, "coarse_weight": 1.0, "revive_codes_every": 5,
        "save_every": 10, "sheet_every": 0},
    "inference": {"rounds": [{"guidance": 2.0, "respacing": "ddim20", "start": 3}]},
}
UNET = {"batch": 3, "save_every": 10, "sheet_every": 0}
RANKS = """
from jiidm.system.runtime import jt
assert jt.world_size == 2 and jt.array([1.0]).mpi_all_reduce("add").item() == 2
"""

# the batch of all, normalised at once and by shares of 1 and 2 pictures: outputs, gradients, and what is kept of it
NORM = """
import numpy as np
from jiidm.baselines.layers import BatchNorm
from jiidm.baselines.sync_batch_norm import SyncMoments
from jiidm.system.runtime import jt
from jiidm.system.distributed import shard
random, own = np.random.default_rng(0), shard(3)
x = (np.arange(3).reshape(3, 1, 1, 1) * 4 + 100 + random.standard_normal((3, 5, 4, 6))).astype(np.float32)
weighting = random.standard_normal(x.shape).astype(np.float32)
found = []
for part, shared in ((slice(None), None), (own, SyncMoments())):
    norms = [BatchNorm(5) for _ in range(3)]
    for norm in norms:
        norm.by_batch, norm.sync = True, shared
    for _ in range(2):  # a second pass begins anew
        if shared is not None:
            shared.begin()
        share = jt.array(x[part])
        y = norms[0](share)
        y = norms[1](y * y) + norms[2](jt.exp(y))  # two that Jittor may compute in any order
        (gradient,) = jt.grad((y * jt.array(weighting[part])).sum(), [share])
        found.append([y.numpy(), gradient.numpy(), *(v.numpy() for norm in norms for v in norm.found)])
for whole, shared in zip(found[:2], found[2:]):
    expected = [whole[0][own], whole[1][own], *whole[2:]]
    for a, b in zip(expected, shared):
        assert a.shape == b.shape and np.abs(a - b).max() <= 2e-5 * np.abs(a).max(), (a, b)
    assert np.abs(expected[1]).max() > 0.01
"""
BASELINES = """
import sys
from pathlib import Path
from jiidm.baselines.config import BaselineRun, DiscriminatorConfig, GeneratorConfig, GeneratorTrainingConfig
from jiidm.baselines.training import train_baseline
from jiidm.config import ImageConfig
data, run = map(Path, sys.argv[1:])
for model, norm in (("gaugan", "spade"), ("clade", "clade_icpe")):
    config = BaselineRun(
        ImageConfig(64, 48), GeneratorConfig(norm, 29, 4, 4, 4, 6, 2, 16), DiscriminatorConfig(4, 2, 2),
        GeneratorTrainingConfig(steps=4, batch=3, learning_rate=1e-6, discriminator_learning_rate=1e-6, ema=0.5,
                                calibrate=2, save_every=2, sheet_every=3))
    train_baseline(config, data, run / model, device="cpu")
"""

# an input that is not finite, in the second process alone: neither waits for the other
BAD_INPUT = """
from types import SimpleNamespace
import numpy as np
from jiidm.training import loop
from jiidm.system.distributed import rank, barrier
batch = np.ones(3, np.float32) / (np.zeros(3, np.float32) if rank() else 1)
trainer = SimpleNamespace(state=SimpleNamespace(variables={}))
assert ("in another process" in loop._first_nonfinite_tensor(trainer, 0, (batch,))) == (rank() == 0)
barrier()
"""


def ranks(*commands):
    """The mpirun command line of one process for each of the commands, run by this Python."""
    line = ["mpirun", "--allow-run-as-root", "--oversubscribe"]
    for i, command in enumerate(commands):
        line += [*([":"] if i else []), "-np", "1", sys.executable, *map(str, command)]
    return line


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module", autouse=True)
def two_processes():
    """Skips where Jittor cannot run in two processes."""
    for tool in ("mpirun", "mpicc"):
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} (apt-get install openmpi-bin libopenmpi-dev)")
    done = subprocess.run(ranks(*[["-c", RANKS]] * 2), env=environment(), capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"Jittor does not run under mpirun here: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with drawn photos in train/, tiny.yaml, and long.yaml, which trains the UNet without an end."""
    top = tmp_path_factory.mktemp("mpi")
    for name, steps in (("tiny", 20), ("long", 100_000)):
        tiny_yaml(top / f"{name}.yaml", **SECTIONS, train_unet={**UNET, "steps": steps, "keep_at": [steps]})
    done = run_main("data", "synthetic", top / "train", "--count", 6, "--width", 64, "--height", 48)
    assert done.returncode == 0, done.stderr
    return top


def training(top, stage, run, config="tiny", data="train"):
    return (ROOT / "tools" / "train.py", stage, "--config", top / f"{config}.yaml", "--data", top / data, "--run",
            top / run, "--device", "cpu")


@pytest.fixture(scope="module")
def runs(top):
    """Two runs of one configuration: alone/ in one process, together/ in two, whose shares of a batch differ."""
    done = subprocess.run([sys.executable, *map(str, training(top, "all", "alone"))], env=environment(),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(ranks(*[training(top, "all", "together")] * 2), env=environment(), capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return top / "alone", top / "together"


def test_two_processes_have_the_losses_of_one(runs):
    for stage in ("autoencoder", "unet"):
        alone, together = (list(csv.DictReader((run / f"{stage}.csv").open())) for run in runs)
        assert [row["step"] for row in alone] == [row["step"] for row in together] == ["10", "20"]
        for a, b in zip(alone, together, strict=True):
            for name in a.keys() - {"samples_per_second"}:
                assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-3, abs=2e-4), (stage, name)
    alone, together = (load_checkpoint(run / "unet-0000020.safetensors").tensors for run in runs)
    for name, value in alone.items():
        assert np.abs(value - together[name]).max() < 2e-3, name  # 20 steps of at most 1e-4 have moved it


def test_the_search_for_a_bad_input_ends_in_all_processes():
    done = subprocess.run(ranks(*[["-c", BAD_INPUT]] * 2), env=environment(), capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr


def test_batch_norms_take_the_whole_batch():
    done = subprocess.run(ranks(*[["-c", NORM]] * 2), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_two_processes_train_the_baselines_of_one(top):
    """Normalised by batch, a model is the same only where the statistics are those of both processes.

    The rates are low, because Adam makes whole steps of the rounding of gradients that are zero. With its first beta of
    zero, its first moments are the gradients.
    """
    runs = top / "baselines-alone", top / "baselines-together"
    one = [sys.executable, "-c", BASELINES, str(top / "train"), str(runs[0])]
    for command in (one, ranks(*[["-c", BASELINES, top / "train", runs[1]]] * 2)):
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert len({tuple(sorted(p.relative_to(run) for p in run.rglob("*"))) for run in runs}) == 1
    for model in ("gaugan", "clade"):
        (alone,), (together,) = (list(csv.DictReader((run / model / "generator.csv").open())) for run in runs)
        for name in alone.keys() - {"samples_per_second"}:
            assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-4, abs=1e-4), (model, name)
        states = [{name: tensor.read() for name, tensor in
                   read_state(run / model / "generator-state-0000004.safetensors")[0].items()} for run in runs]
        final = [load_baseline(run / model / "weights" / f"{model}.safetensors").tensors for run in runs]
        for (a, b), share in ((states, 1e-4), (final, 1e-3)):  # the weights are in half precision
            assert a.keys() == b.keys()
            for name, value in a.items():
                assert np.abs(value - b[name]).max() <= share * max(1, np.abs(value).max()), (model, name)


def test_only_the_first_process_writes(runs):
    alone, together = (sorted(p.relative_to(run) for p in run.rglob("*")) for run in runs)
    assert alone == together
    assert len((runs[1] / "unet.csv").read_text().splitlines()) == 3


def test_an_error_in_one_process_ends_both_with_its_message(top):
    shutil.copytree(top / "train", top / "broken")
    photo = sorted((top / "broken" / "imgs").iterdir())[0]
    photo.write_bytes(photo.read_bytes()[:200])
    start = time.monotonic()
    done = subprocess.run(
        ranks(training(top, "autoencoder", "half", "long"), training(top, "autoencoder", "half", "long", "broken")),
        env=environment(), capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 2 and f"error: {photo}" in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - start < 60  # the start of Jittor is in it


def under_way(top, runs, name):
    """A run folder in which two processes train the UNet without an end, with a state saved; and their mpirun."""
    run = top / name
    shutil.copytree(runs[0], run, ignore=shutil.ignore_patterns("unet*", ".claim"))
    job = subprocess.Popen(ranks(*[training(top, "unet", name, "long")] * 2), env=environment(),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(run.glob("unet-state-*")) and job.poll() is None:
        time.sleep(0.05)
    return run, job


def test_a_process_that_is_killed_ends_the_others(top, runs):
    _, job = under_way(top, runs, "endless")
    first, second = processes_of(job.pid)
    start = time.monotonic()
    os.kill(second, 9)
    _, errors = job.communicate(timeout=60)
    assert job.returncode not in (0, None) and time.monotonic() - start < 30, errors
    while time.monotonic() - start < 30 and is_running(first):
        time.sleep(0.1)
    assert not is_running(first)


def is_running(process):
    """Whether there is a process of this number that has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


def test_a_stop_of_one_process_saves_and_ends_both(top, runs):
    run, job = under_way(top, runs, "stopped")
    os.kill(processes_of(job.pid)[1], 15)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == 143 and "--resume" in errors and "Traceback" not in errors, errors
    newest = max(run.glob("unet-state-*")).stem.removeprefix("unet-state-")
    assert f"after step {int(newest)} " in errors


def processes_of(mpirun):
    """The numbers of the Python processes that an mpirun has started, in the order of their ranks."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            environ = (status.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(fields["PPid"]) == mpirun:
            rank = next((int(e.split(b"=")[1]) for e in environ if e.startswith(b"OMPI_COMM_WORLD_RANK=")), None)
            found += [(rank, int(fields["Pid"]))] if rank is not None else []
    return [pid for _, pid in sorted(found)]


def test_fewer_samples_than_processes_are_refused(top):
    done = subprocess.run(ranks(*[training(top, "autoencoder", "four")] * 4), env=environment(), capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("error: batch 3: fewer samples than the 4 processes") >= 1


def test_pictures_are_shared_out(tmp_path):
    """Two processes make the pictures that one makes; the first also makes the overview of them all."""
    job = (ROOT / "tools" / "infer.py", "--input_path", ROOT / "examples" / "test", "--img_path",
           ROOT / "examples" / "train", "--rounds", 1, "--sampler", "dpmpp", "--steps", 2, "--device", "cpu",
           "--batch", 2, "--overview")
    both, one = tmp_path / "both", tmp_path / "one"
    done = subprocess.run(ranks(*[[*job, both / "sheet.png", "--output_path", both]] * 2), env=environment(),
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = subprocess.run([sys.executable, *map(str, job), one / "sheet.png", "--output_path", one], env=environment(),
                           capture_output=True, text=True, timeout=300)
    assert alone.returncode == 0, alone.stderr
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in both.iterdir()) and "sheet.png" in names and len(names) == 7
    for name in names:
        assert (both / name).read_bytes() == (one / name).read_bytes()
