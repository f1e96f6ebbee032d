"""Long contest jobs: host work beside the computation, Ctrl-C and SIGTERM, and writes that fail."""
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import ROOT, TINY, made_up, refused
from PIL import Image

from jiidm.checkpoint import arrays_of, save_checkpoint
from jiidm.config import InferenceConfig, RoundConfig
from jiidm.contest import job as contest
from jiidm.contest.job import ContestJob, make_pictures
from jiidm.data import folders as data_folders
from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.vocabulary import numbered
from jiidm.generator import Generator
from jiidm.inference.refinement import Step
from jiidm.models.autoencoder import Autoencoder
from jiidm.models.unet import UNet
from jiidm.system.errors import Stopped

pytestmark = pytest.mark.slow

CONFIG = dataclasses.replace(
    TINY, inference=InferenceConfig((RoundConfig(2.0, "ddim20", 12), RoundConfig(2.0, "ddim20", 2))))
COUNT = 6
SLOW = "--rounds", 1, "--batch", 1, "--sampler", "dpmpp", "--steps", 500  # seconds a picture
QUICK = "--rounds", 1


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with train/, test/ and weights/ of tiny networks. The drawings are not of the networks' size."""
    top = tmp_path_factory.mktemp("long")
    drawn = [draw_landscape(seed, 96, 64) for seed in range(COUNT)]
    data_folders.write_training_folder(top / "train", ((f"photo{i}", *pair) for i, pair in enumerate(drawn)))
    masks = ((f"mask{i}", labels) for i, (_, labels) in enumerate(drawn))
    data_folders.write_test_folder(top / "test", masks, data_folders.TrainingFolder(top / "train"))
    (top / "weights").mkdir()
    for kind, network in (("autoencoder", Autoencoder(CONFIG.autoencoder)), ("unet", UNet(CONFIG.unet))):
        save_checkpoint(top / "weights" / f"{kind}.safetensors", kind, arrays_of(made_up(network, 5)), CONFIG, 1)
    return top


def start(folders, output, *options):
    """Starts tools/infer.py in a session of its own."""
    command = [sys.executable, ROOT / "tools" / "infer.py", "--input_path", folders / "test", "--img_path",
               folders / "train", "--output_path", output, "--checkpoint", folders / "weights", *options]
    return subprocess.Popen([str(part) for part in command], env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)


def run_python(text):
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for(condition, process):
    """Waits until condition() holds while the process runs; gives up after a minute or two."""
    end = time.time() + 100
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.time() < end
        time.sleep(0.02)


def pictures_in(folder):
    """The names of the pictures in a folder; checks that each is whole and that nothing else is there."""
    for path in folder.iterdir():
        assert path.suffix == ".jpg" and not path.name.startswith("."), path
        with Image.open(path) as image:
            image.load()
    return sorted(path.name for path in folder.iterdir())


# ---- signals

@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_job_with_what_is_finished_and_resume_goes_on(folders, tmp_path, number, code):
    process = start(folders, tmp_path, *SLOW)
    wait_for(lambda: list(tmp_path.glob("[!.]*.jpg")), process)
    os.kill(process.pid, number)
    stderr = process.communicate(timeout=60)[1]
    made = pictures_in(tmp_path)
    assert process.returncode == code, stderr
    assert 0 < len(made) < COUNT and "Traceback" not in stderr
    assert stderr.splitlines()[-1] == (
        f"stopped: {len(made)} of {COUNT} pictures are in {tmp_path}, {COUNT - len(made)} are missing; "
        "the same command with --resume goes on"
    )
    kept = (tmp_path / made[0]).stat().st_mtime_ns
    process = start(folders, tmp_path, *QUICK, "--resume")
    assert process.communicate()[1] and process.returncode == 0
    assert len(pictures_in(tmp_path)) == COUNT and (tmp_path / made[0]).stat().st_mtime_ns == kept


def test_a_signal_before_the_first_step(folders, tmp_path):
    output = tmp_path / "out"
    process = start(folders, output, *SLOW)
    wait_for(output.exists, process)  # made when the inputs are known to be good, before Jittor is imported
    os.kill(process.pid, signal.SIGTERM)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 143 and not pictures_in(output)
    assert f"stopped: 0 of {COUNT} pictures" in stderr and "Traceback" not in stderr


HOLDS_THE_LOCK = """
from jiidm.system.stopping import interruptible, stoppable
with stoppable(), interruptible():
    print("begins", flush=True)
    sum(range(10 ** 12))  # one call in C, as a step in Jittor: no handler in Python runs before its end
"""
TWO_SIGNALS = f"""
import os, signal, subprocess, sys, time
process = subprocess.Popen([sys.executable, "-c", {HOLDS_THE_LOCK!r}], stdout=subprocess.PIPE)
process.stdout.readline()

def computed():  # ticks of processor time
    return int(open(f"/proc/{{process.pid}}/stat").read().rsplit(")")[1].split()[11])

start = computed()
while computed() < start + 10:  # till the call has begun, on a busy machine, too
    time.sleep(0.01)
os.kill(process.pid, signal.SIGINT)
time.sleep(0.3)
print(process.poll())
os.kill(process.pid, signal.SIGINT)
print(process.wait(timeout=20))
"""


def test_a_second_signal_ends_the_process_even_within_a_step():
    """Jittor would end the process of the tests, too, if a child of it were killed: hence one between the two."""
    assert run_python(TWO_SIGNALS).stdout == f"None\n{-signal.SIGINT}\n"


AROUND = """
import os, signal
from jiidm.commands.entry import run_tool
from jiidm.system.stopping import interruptible, stoppable

def main():
    with stoppable():
        os.kill(os.getpid(), signal.SIGINT)
        print("outside: waits", flush=True)
        try:
            with interruptible():
                print("never")
        finally:
            print("cleaned up", flush=True)

run_tool(main)
"""


def test_a_signal_outside_of_an_interruptible_block_waits_for_the_next():
    done = run_python(AROUND)
    assert (done.returncode, done.stdout) == (130, "outside: waits\ncleaned up\n")
    assert done.stderr == "interrupted\n"


IMPORT = """
import os, sys, threading, time
from jiidm.commands.entry import run_tool
from jiidm.system.stopping import interruptible, stoppable

def send():
    while "jit_utils_core" not in sys.modules:  # with it Jittor sets signal handlers of its own
        time.sleep(0.001)
    os.kill(os.getpid(), {number})

def main():
    with stoppable(), interruptible():
        threading.Thread(target=send).start()
        import jiidm.system.runtime
        print("imported")

run_tool(main)
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_jittor_is_imported(number, code):
    done = run_python(IMPORT.format(number=int(number)))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted\n")


# ---- host work beside the computation

def test_pictures_are_those_of_the_generator_called_directly(folders, tmp_path):
    job = ContestJob(folders / "test", folders / "train", tmp_path / "out", 80, 60, batch=4, save_steps=True)
    assert make_pictures(job, folders / "weights", rounds=2, seed=4) == []
    generator = Generator.from_checkpoint(folders / "weights")
    for item in data_folders.TestFolder(folders / "test", folders / "train").items:
        steps = []
        picture = generator.infer(item.mask, item.reference, rounds=2, seed=4,
                                  on_step=steps.append)
        name, rounds = item.mask.stem, [step.pictures[0] for step in steps if step.pictures]
        for path, image in (
            (f"{name}.jpg", picture), (f"steps/{name}-round1.jpg", rounds[0]), (f"steps/{name}-round2.jpg", rounds[1])
        ):
            image.resize((80, 60), Image.Resampling.LANCZOS).save(tmp_path / "expected.jpg", quality=95)
            assert (tmp_path / "out" / path).read_bytes() == (tmp_path / "expected.jpg").read_bytes()
    assert len(list(tmp_path.glob("out/**/*.jpg"))) == 3 * COUNT


class StandIn:
    """In place of a generator: no networks, pictures of one colour; `act(call, on_step)` happens in each call."""

    vocabulary, width, height = numbered(CONFIG.unet.num_classes), 64, 48

    def __init__(self, act):
        self.act, self.calls = act, 0

    def batch_size(self):
        return 2

    model = "iidm"

    def infer(self, masks, styles, names, on_step, **settings):
        assert [m.shape for m in masks] == [(48, 64)] * len(names) and [s.shape for s in styles] == [(48, 64, 3)] * 2
        self.calls += 1
        self.act(self.calls, on_step)
        return [Image.fromarray(np.full((48, 64, 3), 40 * self.calls, np.uint8)) for _ in names]


@pytest.fixture
def stand_in(monkeypatch):
    """A function that has `make_pictures` use a `StandIn` of the given `act`, and returns it."""
    def use(act=lambda call, on_step: None):
        generator = StandIn(act)
        monkeypatch.setattr("jiidm.generator.load", lambda *arguments, **settings: generator)
        return generator

    return use


def job_of(folders, output, **settings):
    return ContestJob(folders / "test", folders / "train", output, 64, 48, **settings)


def test_the_host_reads_one_batch_ahead_and_writes_one_behind_in_the_background(folders, tmp_path, stand_in,
                                                                               monkeypatch):
    read, saved, threads = [], [], set()

    def recorded(function, calls):
        def call(*arguments):
            threads.add(threading.current_thread())
            calls.append(arguments)
            return function(*arguments)

        return call

    def act(call, _on_step):
        """Batch `call` of 2 is computed: the next one has been read or is being read, the one before written."""
        end = time.time() + 20
        while (len(read), len(saved)) != (min(2 * call + 2, COUNT), call - 1):
            assert time.time() < end, (call, read, saved)
            time.sleep(0.01)
        time.sleep(0.05)  # and nothing more happens
        assert (len(read), len(saved)) == (min(2 * call + 2, COUNT), call - 1)

    monkeypatch.setattr(contest, "read_photo", recorded(contest.read_photo, read))
    monkeypatch.setattr(contest, "_write", recorded(contest._write, saved))
    generator = stand_in(act)
    assert make_pictures(job_of(folders, tmp_path)) == []
    assert generator.calls == 3 and len(pictures_in(tmp_path)) == COUNT
    assert len(threads) == 1 and threading.main_thread() not in threads


def test_an_interrupt_in_python_leaves_what_is_finished(folders, tmp_path, stand_in):
    def act(call, _on_step):
        if call == 3:
            raise KeyboardInterrupt

    stand_in(act)
    with pytest.raises(Stopped, match=f"stopped: 4 of {COUNT} pictures") as caught:
        make_pictures(job_of(folders, tmp_path))
    assert caught.value.signal == signal.SIGINT and len(pictures_in(tmp_path)) == 4


# ---- writes that fail

def test_a_failed_write_ends_the_tool_with_the_name_of_the_file(folders, tmp_path):
    (tmp_path / "mask1.jpg").mkdir()
    process = start(folders, tmp_path, *QUICK, "--batch", 1)
    stderr = process.communicate()[1]
    assert process.returncode == 2 and "Traceback" not in stderr
    assert stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'mask1.jpg'}: cannot be written")
    (tmp_path / "mask1.jpg").rmdir()
    assert "mask0.jpg" in pictures_in(tmp_path)


def test_a_failed_write_is_told_at_the_next_step(folders, tmp_path, stand_in):
    steps = []

    def act(call, on_step):
        for step in range(1000):  # of the second batch: 20 s, if nobody looks
            time.sleep(0.02 * (call == 2))
            steps.append(call)
            on_step(Step(0, step, 1000, None, None))

    (tmp_path / "mask0.jpg").mkdir()
    generator = stand_in(act)
    refused(lambda: make_pictures(job_of(folders, tmp_path)), tmp_path / "mask0.jpg", "cannot be written")
    assert generator.calls == 2 and steps.count(2) < 1000


def test_a_failed_write_of_the_last_picture_is_told(folders, tmp_path, stand_in):
    (tmp_path / f"mask{COUNT - 1}.jpg").mkdir()
    stand_in()
    refused(lambda: make_pictures(job_of(folders, tmp_path)), tmp_path / f"mask{COUNT - 1}.jpg", "cannot be written")
    (tmp_path / f"mask{COUNT - 1}.jpg").rmdir()
    assert len(pictures_in(tmp_path)) == COUNT - 1
