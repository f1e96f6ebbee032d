"""What all five trainings share: how they resume, and how they refuse to."""
import pytest
from helpers import run_main

from jiidm.data.drawn.scenes import draw_landscape
from jiidm.data.folders import write_training_folder

STAGES = {"autoencoder": "default", "unet": "default", "segmenter": "segmenter", "gaugan": "gaugan", "clade": "clade"}
TABLES = {"gaugan": "generator", "clade": "generator"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("landscapes") / "train"
    write_training_folder(path, ((f"{seed}", *draw_landscape(seed, 64, 48)) for seed in range(2)))
    return path


def train(stage, data, run, *options):
    return run_main("train", stage, "--config", STAGES[stage], "--data", data, "--run", run, *options)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_does_not_exist_is_not_resumed(stage, data, tmp_path):
    run = tmp_path / "run"
    done = train(stage, data, run, "--resume")
    assert done.returncode == 2 and not run.exists()
    assert done.stderr == f"error: {run}: no such run to resume; leave out --resume to start it\n"


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"unet"}))
def test_a_state_that_does_not_exist_is_not_resumed(stage, data, tmp_path):
    done = train(stage, data, tmp_path, "--resume", 7)
    assert done.returncode == 2 and "no such state; the saved steps in" in done.stderr and "are: none" in done.stderr
    done = train(stage, data, tmp_path, "--resume", "latest")
    assert done.returncode == 2 and "--resume latest: expected auto, the step of a state" in done.stderr


@pytest.mark.parametrize("stage", sorted(set(STAGES) - {"unet"}))
def test_a_run_is_not_written_over(stage, data, tmp_path):
    state = tmp_path / f"{TABLES.get(stage, stage)}-state-0000005.safetensors"
    state.touch()
    done = train(stage, data, tmp_path)
    assert done.returncode == 2
    assert done.stderr == (f"error: {state}: exists already; add --resume to go on, or choose another run folder\n")
