"""A training that is killed, stopped, starved of disk or fed with NaN loses nothing and goes on bit for bit."""
import csv
import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from helpers import ROOT, refused, run_main, tiny_yaml
from helpers import run_tool as finished_tool

from jiidm import InputError
from jiidm.checkpoint import load_checkpoint, load_tensors, save_tensors
from jiidm.config import Config, UNetTrainingConfig
from jiidm.system.runtime import jt
from jiidm.training import state as saved
from jiidm.training.claim import claimed
from jiidm.training.gradients import Learner, first_nonfinite_output
from jiidm.training.log import Table
from jiidm.training.loop import train_loop
from jiidm.training.trainer import Losses, Trainer
from jiidm.training.watch import Watch

pytestmark = pytest.mark.slow

STEPS = 40
SECTIONS = {
    "train_autoencoder": {"steps": 2, "batch": 2, "crop": 32, "discriminator_channels": 8, "discriminator_layers": 1},
    "train_unet": {"steps": STEPS, "batch": 3, "keep_at": [STEPS], "save_every": 2, "sheet_every": 0},
    "inference": {"rounds": [{"guidance": 2.0, "respacing": "ddim20", "start": 3}]},
}


@pytest.fixture(scope="module", autouse=True)
def children_may_be_killed():
    """Jittor, once imported, ends the process when a child of it is killed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with tiny.yaml, train/ (drawn), start/, a run whose UNet is to be trained, and run/, where it is."""
    top = tmp_path_factory.mktemp("safety")
    tiny_yaml(top / "tiny.yaml", **SECTIONS)
    for command in (
        ("prepare_data", "synthetic", top / "train", "--count", 6, "--width", 64, "--height", 48),
        ("train", "autoencoder", *common(top, "start")), ("train", "latents", *common(top, "start")),
    ):
        done = finished_tool(*command)
        assert done.returncode == 0, done.stderr
    shutil.copytree(top / "start", top / "run")
    done = finished_tool("train", "unet", *common(top, "run"))
    assert done.returncode == 0, done.stderr
    return top


def common(top, run):
    return "--config", top / "tiny.yaml", "--data", top / "train", "--run", top / run


def started(top, run, *options, most_bytes=None):
    """A process that trains the UNet of `run`; no file that it writes may have more than `most_bytes`."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most_bytes, most_bytes)) if most_bytes else None
    return subprocess.Popen(
        [sys.executable, ROOT / "tools" / "train.py", "unet", *map(str, (*common(top, run), *options))],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit,  # noqa: PLW1509 - this process has no threads that matter
    )


def newest(run):
    """Step of the newest saved state."""
    return max((step for step, _ in saved.saved_states(run, "unet")), default=0)


def wait_for(process, run, step):
    """Returns when `run` has a state of at least `step` steps, or the process has ended."""
    while newest(run) < step and process.poll() is None:
        time.sleep(0.002)


def test_a_run_killed_stopped_and_damaged_ends_with_the_very_same_weights(top):
    run, dice = top / "killed", random.Random(4)
    shutil.copytree(top / "start", run)
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
        before = newest(run)
        process = started(top, run, *(["--resume"] if before else []))
        wait_for(process, run, before + 4)
        time.sleep(dice.uniform(0, 0.05))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == code, errors
        for _, path in saved.saved_states(run, "unet"):
            saved.read_state(path)  # whole
        if code > 0:
            last = errors.splitlines()[-1]
            assert f"after step {newest(run)} " in last and "--resume" in last and "Traceback" not in errors
    cut, flipped = (path for _, path in saved.saved_states(run, "unet"))
    spoil(cut), cut.rename(saved.state_path(run, "unet", 1000)), shutil.copy(flipped, cut)
    flip(cut)  # two broken ones, one whole
    process = started(top, run, "--resume")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert errors.count("left out, taking the one before") == 2 and str(cut) in errors
    whole, resumed = (load_checkpoint(top / f / f"unet-{STEPS:07d}.safetensors").tensors for f in ("run", "killed"))
    assert all((value == resumed[name]).all() for name, value in whole.items())
    states = [load_tensors(saved.state_path(top / f, "unet", STEPS))[0] for f in ("run", "killed")]
    assert all((value == states[1][name]).all() for name, value in states[0].items())
    with open(run / "unet.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


def spoil(path):
    """Cuts a file in its middle, as a write that never came to its end."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """Changes one bit in the last tensor of a file."""
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 4
    path.write_bytes(raw)


def test_a_full_disk_ends_a_run_in_one_line_and_keeps_its_last_state(top):
    run = top / "full"
    shutil.copytree(top / "start", run)
    process = started(top, run)
    wait_for(process, run, 4)
    process.kill()
    process.communicate()
    before = {path.name: path.read_bytes() for _, path in saved.saved_states(run, "unet")}
    done = started(top, run, "--resume", most_bytes=min(map(len, before.values())) - 1)
    _, errors = done.communicate(timeout=60)
    assert done.returncode == 2 and "cannot be written" in errors and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith("error: ")
    assert {path.name: path.read_bytes() for _, path in saved.saved_states(run, "unet")} == before
    assert not list(run.glob(".*.tmp*"))


def test_states_are_whole_or_refused(tmp_path, monkeypatch):
    path, variables = saved.state_path(tmp_path, "unet", 7), {"a": jt.array([1.0, 2.0]), "b": jt.zeros((2, 0, 3))}
    save_tensors(path, variables, {"step": "7"}, checksum=saved.CHECKSUM)
    tensors, metadata = saved.read_state(path)
    assert tensors["a"].read().tolist() == [1, 2] and tensors["b"].shape == (2, 0, 3) and metadata["step"] == "7"
    assert load_tensors(path)[0]["a"].tolist() == [1, 2]  # any reader of safetensors can have it
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        refused(lambda: saved.read_state(path), path)
        path.write_bytes(whole[:place])
        refused(lambda: saved.read_state(path), path)
    path.write_bytes(whole)

    def full(_file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused(lambda: save_tensors(path, variables, {"step": "8"}, checksum=saved.CHECKSUM), path, "No space left")
    assert path.read_bytes() == whole and os.listdir(tmp_path) == [path.name]


def test_the_table_says_that_the_disk_is_full(tmp_path):
    table = Table(tmp_path / "t.csv", ["step", "loss"], 0)
    table.write(step=10, loss=0.5)
    table.file.close()
    table.file = open("/dev/full", "w")  # noqa: SIM115 - as Table does it
    table.writer = csv.DictWriter(table.file, table.columns)
    refused(lambda: table.write(step=20, loss=0.25), tmp_path / "t.csv", "No space left")
    (tmp_path / "t.csv").write_text("step,loss\n10,0.5\n20,0.3\n30,0.2\n40")
    with Table(tmp_path / "t.csv", ["step", "loss"], 20):
        pass
    assert (tmp_path / "t.csv").read_text().split() == ["step,loss", "10,0.5", "20,0.3"]


def test_the_newest_states_and_each_mth_are_kept(tmp_path):
    for step in range(10, 130, 10):
        save_tensors(saved.state_path(tmp_path, "unet", step), {"a": jt.zeros(1)}, {}, checksum=saved.CHECKSUM)
        saved.prune(tmp_path, "unet", 2, 50)
    save_tensors(saved.state_path(tmp_path, "autoencoder", 5), {"a": jt.zeros(1)}, {}, checksum=saved.CHECKSUM)
    assert [step for step, _ in saved.saved_states(tmp_path, "unet")] == [120, 110, 100, 50]


HOLDER = """
import os, sys, time
from pathlib import Path
from jiidm.training.claim import claimed
with claimed(Path(sys.argv[1])):
    if os.fork() == 0:  # a child that outlives its parent
        time.sleep(20)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_folder_has_one_owner_and_the_dead_own_nothing(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], env={**os.environ, "PYTHONPATH": str(ROOT)},
                              stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=f"process {holder.pid} on {socket.gethostname()}"), claimed(tmp_path):
        pass
    (tmp_path / ".unet-state-0000001.4711.tmp.safetensors").touch()
    holder.kill()
    holder.wait()
    with claimed(tmp_path):
        assert os.listdir(tmp_path) == [".claim"]  # and what the dead left half-written is gone
    holder.stdout.close()


class Small(Trainer):
    """A layer that learns to give 0, with data that can be spoilt at a step."""

    stage, title, columns, sections = "unet", "a layer", ("mse", "other"), ("train_unet",)

    def __init__(self, run, spoilt=(), **settings):
        own = {"steps": 60, "batch": 4, "keep_at": (60,), "save_every": 10, "sheet_every": 0}
        training = UNetTrainingConfig(**{**own, **settings})
        super().__init__(Config(train_unet=training, seed=5), range(4), run)
        self.spoilt, self.saw = dict(spoilt), []
        self.build()

    def build_networks(self):
        self.network = jt.nn.Sequential(jt.nn.Linear(3, 4), jt.nn.Linear(4, 1))
        self.learners = [Learner("network", self.network, jt.optim.AdamW(self.network.parameters(), 1e-3))]

    def names(self, step):
        return [f"photo{step}.jpg"]

    def batch(self, step):
        batch = np.random.default_rng(step).standard_normal((4, 3)).astype("f4")
        batch[0, 1] *= self.spoilt.get(step, 1)
        return (batch,)

    def begin(self, step):
        self.saw.append(step)

    def losses(self, step, part):
        loss = (self.network(jt.array(part[0])) ** 2).mean()
        return Losses([loss], [loss, jt.zeros(1)])

    def pictures(self, step):
        return {"nothing": [np.zeros((8, 8, 3), np.uint8)]}

    def save_weights(self, path, step):
        pass


@pytest.mark.parametrize("factor, words", [
    (np.nan, "mse is nan.*input 0 of the batch"), (1e4, "mse is .* more than 100 times the median"),
    (1e30, "mse is inf.*none of the inputs"),  # finite numbers whose square is not
])
def test_a_bad_step_stops_the_run_and_leaves_the_last_state(tmp_path, factor, words):
    with pytest.raises(InputError, match=f"step 34.*{words}.*photo34.jpg"):
        train_loop(Small(tmp_path, {34: factor}), None)
    assert newest(tmp_path) == 30
    tensors, _ = saved.read_state(saved.state_path(tmp_path, "unet", 30))
    assert all(np.isfinite(tensor.read()).all() for tensor in tensors.values())
    mended = Small(tmp_path)  # without the broken file
    train_loop(mended, "auto")
    assert mended.saw[0] == 30 and newest(tmp_path) == 60


def test_bad_steps_are_left_out_and_counted_over_a_resumption(tmp_path, capsys):
    spoilt = {34: np.nan, 45: np.inf}
    for folder in ("all", "parted"):
        (tmp_path / folder).mkdir()
    train_loop(Small(tmp_path / "all", spoilt, skip_bad_steps=2), None)
    assert capsys.readouterr().out.count("jiidm: left out") == 2
    first = Small(tmp_path / "parted", spoilt, skip_bad_steps=1)
    with pytest.raises(InputError, match="step 45"):
        train_loop(first, None)
    second = Small(tmp_path / "parted", spoilt, skip_bad_steps=2)
    train_loop(second, "auto")
    assert second.saw[0] == 40 and second.watch.skipped == 2
    for name in ("network/0.weight", "network-m/0"):
        one, other = (load_tensors(saved.state_path(tmp_path / f, "unet", 60))[0][name] for f in ("all", "parted"))
        assert (one == other).all()


def test_a_step_back_sets_newer_states_aside(tmp_path):
    train_loop(Small(tmp_path, keep_every=20), None)
    assert [step for step, _ in saved.saved_states(tmp_path, "unet")] == [60, 50, 40, 20]
    again = Small(tmp_path, keep_every=20)
    train_loop(again, saved.state_path(tmp_path, "unet", 40))
    assert again.saw[0] == 40 and newest(tmp_path) == 60
    assert len(list(tmp_path.glob("*.aside"))) == 2
    with pytest.raises(InputError, match="another configuration"):
        train_loop(Small(tmp_path, batch=5), "auto")


def test_no_whole_state_is_no_fresh_start(tmp_path):
    saved.state_path(tmp_path, "unet", 3).write_bytes(b"nothing")
    refused(lambda: Small(tmp_path).state.resume("auto"), "neither it nor an older state is whole")


def test_micro_batches_give_the_gradients_of_the_whole_batch(tmp_path):
    totals = []
    for micro in (0, 1, 3):
        trainer = Small(tmp_path, micro_batch=micro)
        losses, (gradients,) = trainer.compute(0, trainer.batch(0))
        totals.append([losses["mse"], *(value.numpy() for value in gradients.values)])
    for other in totals[1:]:
        for a, b in zip(totals[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_a_watch_names_a_bad_gradient_and_needs_twenty_losses_for_a_median(tmp_path):
    trainer = Small(tmp_path)
    _, gradients = trainer.compute(0, trainer.batch(0))
    watch = Watch(10, 0)
    for loss in (1.0, 500.0, *[1.0] * 17):  # a spike at the start is no explosion
        assert watch.fault({"mse": loss}, gradients) is None
    assert watch.fault({"mse": 500.0}, gradients) is None
    assert "10 times the median" in watch.fault({"mse": 11.0}, gradients)
    restored = Watch(10, 0)
    restored.restore(json.loads(json.dumps(watch.state())))
    assert restored.fault({"mse": 11.0}, gradients) and restored.fault({"mse": 9.0}, gradients) is None
    assert dataclasses.asdict(trainer.training)["loss_limit"] == 100
    gradients[0].values[2] = gradients[0].values[2] / 0
    assert watch.fault({"mse": 1.0}, gradients) == "the gradient of 1.weight is not finite"


def test_the_first_layer_with_a_bad_output_is_named():
    network = jt.nn.Sequential(jt.nn.Linear(2, 2), jt.nn.Linear(2, 2), jt.nn.Linear(2, 2))
    assert first_nonfinite_output(network, lambda: network(jt.ones((1, 2)))) is None
    network[1].bias.assign(jt.array([0.0, np.inf]))
    assert first_nonfinite_output(network, lambda: network(jt.ones((1, 2)))) == "1"
    assert np.isfinite(network[0](jt.ones((1, 2))).numpy()).all()


def test_a_run_in_parts_of_some_minutes_ends_with_the_very_same_weights(top):
    run, calls = top / "minutes", 0
    shutil.copytree(top / "start", run)
    while not (run / f"unet-{STEPS:07d}.safetensors").exists():
        before, minutes = newest(run), 1 if calls else 1e-9
        done = run_main("train", "unet", *common(top, "minutes"), "--minutes", minutes, *["--resume"] * bool(before))
        calls += 1
        assert done.returncode == 0, done.stderr
        if not (run / f"unet-{STEPS:07d}.safetensors").exists():
            last = done.stderr.splitlines()[-1]
            assert f"--minutes after step {newest(run)} of the unet" in last and "--resume goes on" in last
    assert calls > 1
    whole, parts = (load_checkpoint(top / f / f"unet-{STEPS:07d}.safetensors").tensors for f in ("run", "minutes"))
    assert all((value == parts[name]).all() for name, value in whole.items())


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_minutes_that_are_none_are_refused(top, minutes):
    done = run_main("train", "unet", *common(top, "run"), "--resume", f"--minutes={minutes}")
    assert done.returncode == 2 and f"error: --minutes {float(minutes):g}: expected" in done.stderr


def test_a_step_to_resume_from_needs_its_stage(top):
    done = run_main("train", "all", *common(top, "run"), "--resume", 20)
    assert done.returncode == 2 and "of which stage" in done.stderr
    done = run_main("train", "unet", *common(top, "run"), "--resume", 19)
    assert done.returncode == 2 and f"saved steps in {top / 'run'} are: {STEPS}, {STEPS - 2}" in done.stderr


def test_a_dry_run_prints_a_plan_and_writes_nothing(top):
    before = sorted(top.rglob("*"))
    done = finished_tool("train", "all", *common(top, "planned"), "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("autoencoder: ", "unet: ", f"{STEPS} steps of 3 samples", "GB in all", "hours", "2 states"):
        assert word in done.stdout, done.stdout
    assert sorted(top.rglob("*")) == before
