"""The session on a lent machine: steps that fail or are cut off, what a second call does, and what travels."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, TINY, refused, run_tool

from benchmarks import gpu, gpu_carry, gpu_session
from benchmarks.gpu_session import Session, Step, split
from jiidm.checkpoint import load_checkpoint
from jiidm.config import to_dict


@pytest.fixture
def session(tmp_path):
    return lambda minutes=5.0: Session(tmp_path / "carry", tmp_path / "work", tmp_path / "out", minutes, "cpu")


def python(code, **more):
    return Step(more.pop("name", "a"), [sys.executable, "-c", code], more.pop("limit", 60), **more)


def lines(path):
    return [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]


def test_a_step_that_fails_is_noted_at_once_and_is_not_done_again(session, tmp_path):
    first, step = session(), python("print('about'); raise SystemExit('error: no luck')")
    assert first.run(step)
    record, = lines(tmp_path / "out")
    assert record["status"] == "failed" and record["code"] == 1 and record["note"] == "error: no luck"
    assert record["tail"] == ["about", "error: no luck"] and "error: no luck" in (tmp_path / "out/logs.txt").read_text()
    assert session().is_done(step) and lines(tmp_path / "work") == [record]


def test_the_report_of_a_step_comes_along_even_when_it_is_ended(session, tmp_path):
    report = tmp_path / "report.json"
    step = python(f"open({str(report)!r}, 'w').write('[1, 2]'); import time; time.sleep(60)", limit=1, report=report)
    start = time.monotonic()
    assert session().run(step) and time.monotonic() - start < 20
    assert [(r["status"], r["report"]) for r in lines(tmp_path / "out")] == [("failed", [1, 2])]


def test_a_step_without_time_is_left_for_the_next_call(session, tmp_path, capsys):
    step = python("pass", least=60)
    late = session((gpu_session.SPARE + 30) / 60)
    assert not late.run(step) and not late.is_done(step) and "the next call goes on" in capsys.readouterr().out
    assert session().run(step) and session().is_done(step)


def test_a_step_that_two_calls_cut_off_has_failed(session, tmp_path):
    step = python("import time; time.sleep(60)", least=0)
    for status, done in (("cut", False), ("failed", True)):
        call = session((gpu_session.SPARE + 1) / 60)
        assert not call.run(step)
        assert lines(tmp_path / "out")[-1]["status"] == status and call.is_done(step) is done


def test_a_training_goes_on_until_its_result_is_there(session, tmp_path):
    result = tmp_path / "result"
    step = python("", result=result)
    step.command = [sys.executable, "-c", "import sys; print(sys.argv[1])", "{minutes}"]
    assert session().run(step) and not session().is_done(step)
    assert lines(tmp_path / "out")[0]["tail"] == ["0.667"]  # of the minute, without the time for saving
    result.touch()
    assert session().run(step) and session().is_done(step)
    assert [r["status"] for r in lines(tmp_path / "out")] == ["part", "done"]


def test_what_cannot_be_done_here_is_skipped_with_a_sentence_and_tried_again(session, tmp_path):
    step = python("", without="torch is not installed here")
    assert session().run(step) and not session().is_done(step)
    assert lines(tmp_path / "out")[0]["note"] == "torch is not installed here"


def test_another_machine_goes_on_from_the_results_that_it_is_given(session, tmp_path):
    (tmp_path / "carry").mkdir()
    results = [("doctor", "done"), ("parity", "cut"), ("bf16", "done"), ("torch", "failed"), ("unet", "done")]
    text = "".join(json.dumps({"step": step, "status": status}) + "\n" for step, status in results)
    (tmp_path / "carry" / "results.jsonl").write_text(text)
    done = [name for name, _ in results if session().is_done(python("", name=name))]
    assert done == ["bf16", "torch"] == [record["step"] for record in lines(tmp_path / "out")]


def test_a_doctor_that_failed_is_asked_again(session):
    call = session()
    for name in ("doctor", "parity"):
        call.add(name, "failed")
    assert not call.is_done(python("", name="doctor")) and call.is_done(python("", name="parity"))


def test_what_a_killed_call_left_running_is_ended(session, tmp_path):
    running = tmp_path / "work" / "running"
    running.parent.mkdir()
    number = tmp_path / "number"
    subprocess.run(["setsid", "--fork", "sh", "-c", f"echo $$ > {number}; exec sleep 60"], check=True)
    while not number.exists() or not number.read_text().strip():
        time.sleep(0.01)
    process = Path("/proc", number.read_text().strip())
    running.write_text(f"{process.name} 1")  # another process that had this number
    session()
    assert process.exists() and not running.exists()
    running.write_text(f"{process.name} {gpu_session.started(process.name)}")
    call, end = session(), time.monotonic() + 10
    while process.exists() and "State:\tZ" not in (process / "status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert call.run(python("pass")) and not running.exists()


def test_a_damaged_archive_is_noted_and_the_session_goes_on(session, tmp_path):
    (tmp_path / "carry").mkdir()
    (tmp_path / "carry" / "carry.json").write_text("{}")
    (tmp_path / "carry" / "photos.tar.xz").write_bytes(b"not an archive")
    assert session().unpack() == {} and not (tmp_path / "work" / "photos").exists()
    record, = lines(tmp_path / "out")
    assert record["status"] == "failed" and record["note"].startswith("photos.tar.xz: ")


def test_compiled_code_goes_home_in_pieces_and_comes_back(session, tmp_path, monkeypatch):
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "there"))
    cache = tmp_path / "there" / ".cache" / "jittor" / "deep"
    cache.mkdir(parents=True)
    (cache / "kernel.so").write_bytes(os.urandom(300_000))
    (cache / "standard.h.gch").write_bytes(b"large, and made anew in a second")
    monkeypatch.setattr(gpu_session, "split", lambda path, target: split(path, target, 100_000))
    session().pack_home(1e6)
    pieces = sorted((tmp_path / "out").glob("home.tar.*"))
    assert len(pieces) == 4 and all(path.stat().st_size <= 100_000 for path in pieces)
    (tmp_path / "carry").mkdir()
    for piece in pieces:
        piece.rename(tmp_path / "carry" / piece.name)
    (tmp_path / "carry" / "carry.json").write_text("{}")
    monkeypatch.setenv("JITTOR_HOME", str(tmp_path / "here"))
    session().unpack()
    again = tmp_path / "here" / ".cache" / "jittor" / "deep"
    assert (again / "kernel.so").read_bytes() == (cache / "kernel.so").read_bytes()
    assert not (again / "standard.h.gch").exists()
    session().pack_home(1e5)
    assert not list((tmp_path / "out").glob("home*")) and "it stays here" in lines(tmp_path / "out")[-1]["note"]


def test_a_long_log_loses_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_session, "LOG_BYTES", 800)
    (tmp_path / "log").write_bytes(b"a" * 500 + b"b" * 5000 + b"c" * 500)
    gpu_session.shorten(tmp_path / "log")
    text = (tmp_path / "log").read_bytes()
    assert len(text) < 800 and text.startswith(b"a" * 100) and text.endswith(b"c" * 400) and b"..." in text


def test_a_function_that_fails_costs_its_rows_and_the_next_one_starts_in_a_new_process(tmp_path, monkeypatch):
    ran = []

    def ceilings(bench):
        ran.append("ceilings")
        yield gpu.Row("copy")

    def bad(bench):
        yield gpu.Row("bad, first")
        raise RuntimeError("an illegal memory access\nand more")

    def good(bench):
        ran.append("good")
        yield gpu.Row("good", error=0.0, tolerance=1.0)

    def restart(program, call):
        raise SystemExit(call)

    monkeypatch.setattr(gpu, "ceilings", ceilings)
    monkeypatch.setitem(gpu.ROWS, "bf16", [ceilings, bad, good])
    monkeypatch.setattr(gpu.os, "execv", restart)
    with pytest.raises(SystemExit) as stopped:
        gpu.measure("bf16", True, tmp_path)
    assert stopped.value.code[-2:] == ["--after", "bad"] and "--tiny" in stopped.value.code
    assert not gpu.measure("bf16", True, tmp_path, "bad")
    assert ran == ["ceilings", "ceilings", "good"]
    rows = json.loads((tmp_path / "bf16.json").read_text())
    assert [(row["what"], row["fault"]) for row in rows] == [
        ("copy", False), ("bad, first", False), ("bad", True), ("good", False)]
    assert rows[2]["note"] == "an illegal memory access"


def test_a_part_that_ends_without_a_fault_of_its_own_is_one(monkeypatch, capsys):
    monkeypatch.setattr(gpu, "ROWS", {"parity": [], "bf16": []})
    monkeypatch.setattr(gpu, "call_of", lambda part, tiny, folder: [sys.executable, "-c", (
        f"open('{folder}/{part}.json', 'w').write('[]'); raise SystemExit({int(part == 'bf16')})")])
    row, = gpu.all_parts(True)
    assert (row["what"], row["fault"], row["note"]) == ("bf16", True, "ended with exit code 1")
    assert "FAIL" in capsys.readouterr().out


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with train/, tiny.yaml and run/, an autoencoder after one step and its latents."""
    top = tmp_path_factory.mktemp("session")
    config = to_dict(TINY)
    config["train_autoencoder"].update(steps=1, batch=2, crop=32, discriminator_channels=8, discriminator_layers=1)
    config["train_decoder"].update(crop=32)
    config["train_unet"].update(steps=40, batch=2, keep_at=[40])
    (top / "tiny.yaml").write_text(yaml.safe_dump(config))
    for command in (("prepare_data", "synthetic", top / "train", "--count", 4, "--width", 64, "--height", 48),
                    *(("train", stage, *common(top)) for stage in ("autoencoder", "latents"))):
        done = run_tool(*command)
        assert done.returncode == 0, done.stderr
    return top


def common(top):
    return "--config", top / "tiny.yaml", "--data", top / "train", "--run", top / "run"


def program(name, *arguments):
    """The command of a benchmark, and the environment for it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)], {**os.environ, "PYTHONPATH": path}


def carried(top, carry, *options):
    command, env = program("gpu_carry", carry, *common(top), "--precision", "fp32", *options)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.bench
def test_a_session_that_is_interrupted_goes_on_and_brings_the_weights_home(top, tmp_path):
    done = carried(top, tmp_path / "carry", "--parts", "latents", "--latents", 3, "--limit", 1000)
    assert "latents of 3 photos" in done.stdout
    assert done.returncode == 0 and "MiB  latents.xz" in done.stdout and "gpu_session.py" in done.stdout, done.stderr
    command, env = program("gpu_session", tmp_path / "carry", "--output", tmp_path / "out", "--work", tmp_path / "work",
                           "--device", "cpu", "--only", "parity", "unet", "--home-mb", 0)
    env["JIIDM_DEVICE"] = "cpu"
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    table = tmp_path / "work/run/unet.csv"
    while not (table.exists() and len(table.read_text().splitlines()) > 1) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 143, text
    assert [(r["step"], r["status"]) for r in lines(tmp_path / "out")] == [("parity", "failed")]
    assert "no CUDA" in lines(tmp_path / "out")[0]["note"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # parity has failed; it is not tried again
    assert [(r["step"], r["status"]) for r in lines(tmp_path / "out")][1:] == [("unet", "done")]
    assert "goes on from step" in (tmp_path / "out" / "logs.txt").read_text()
    subprocess.run("cat run.tar.* | tar x", shell=True, cwd=tmp_path / "out", check=True)
    home, there = tmp_path / "out" / "unet.safetensors", tmp_path / "work" / "run" / "unet-0000040.safetensors"
    assert load_checkpoint(home, "unet").step == 40 and home.stat().st_size < 0.6 * there.stat().st_size


@pytest.mark.slow
@pytest.mark.bench
def test_what_is_too_much_to_carry_is_refused_with_the_sizes(top, tmp_path):
    done = carried(top, tmp_path / "carry", "--parts", "photos", "--photos", 3, "--limit", 1)
    assert done.returncode == 2 and "MiB too many" in done.stderr and "features.tar.xz" in done.stdout
    session = Session(tmp_path / "carry", tmp_path / "work", tmp_path / "out", 1, "cpu")
    assert session.unpack()["decoder"] == "decoder.safetensors"
    assert len(list((tmp_path / "work/photos/imgs").iterdir())) == 3
    training = yaml.safe_load((tmp_path / "work/config.yaml").read_text())["train_unet"]
    assert (training["precision"], training["sheet_every"], training["save_every"]) == ("fp32", 0, 500)


def test_a_package_that_does_not_exist_is_refused_in_one_line(tmp_path):
    refused(lambda: gpu_carry.write_packages(tmp_path / "p.tar.xz", "3.12", [f"{tmp_path}/none"]), "pip download")
    assert not list(tmp_path.iterdir())
