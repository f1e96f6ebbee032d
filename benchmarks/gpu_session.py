"""Does all that needs a GPU, step by step, on a machine with a GPU that is bare, offline and lent for a short time.

    python3 benchmarks/gpu_session.py CARRY --output OUT --minutes 9

CARRY is what `python -m benchmarks.gpu_carry` has prepared. This program needs Python's standard library alone: the
packages come in CARRY. Each step is a process with a time limit of its own. Its result is in OUT at once, and a step
that fails stops no other. A second call goes on with the first step that is not done. What an earlier call has unpacked
need not be brought again while the machine lives. A training goes on until the minutes are over, and in the next call.

OUT gets results.jsonl (a line a step, of all calls), logs.txt (of this call), and in pieces home.tar (what Jittor has
compiled) and run.tar (weights in half precision, tables, sample grids): `cat run.tar.* | tar x`. With results.jsonl in
CARRY another machine does not repeat the comparisons. With the pieces of home.tar it need not compile, if it has the
same name, processor and system.
"""
import argparse
import contextlib
import importlib.util
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SPARE = 20  # seconds at the end of a call, for saving and packing
PACKING = 90  # seconds that packing what Jittor has compiled may take
COMPARISONS = "parity", "bf16", "torch", "kernels", "fp32", "reference"
LOG_BYTES = 8_000_000
TAIL = 30  # lines of a step's log in its result
NOT_NEEDED = (".gch", ".lock", ".log")  # of Jittor's cache
HALF = """  # a checkpoint in half precision
import sys
from jiidm.checkpoint import load_checkpoint, save_checkpoint
c = load_checkpoint(sys.argv[1])
save_checkpoint(sys.argv[2], c.kind, c.tensors, c.config, c.step, note=c.note, provenance=c.provenance,
                classes=c.classes)
"""


@dataclass
class Step:
    """A step: a command with its time limit."""

    name: str
    command: list
    limit: int                     # seconds
    least: int = 30                # seconds without which it is not started
    env: dict = field(default_factory=dict)
    report: Path | None = None     # JSON that the command writes; becomes part of the result
    result: Path | None = None     # of a training: there when it is finished, until then further calls go on
    without: str | None = None     # why it cannot be done here


class Session:
    """The folders of a session and the results of its steps.

    Args:
        carry: the folder that was brought along; its parts that this machine has already may be missing.
        work: the folder that lives as long as the machine.
        output: the folder whose files go home.
        minutes: of this call.
        device: "cuda" or "cpu".
    """

    def __init__(self, carry, work, output, minutes, device):
        self.carry, self.work, self.output, self.device = carry, work, output, device
        self.end = time.monotonic() + 60 * minutes
        for folder in (work, output):
            folder.mkdir(parents=True, exist_ok=True)
        self.results, self.running = work / "results.jsonl", work / "running"
        if not self.results.exists() and (carry / "results.jsonl").exists():
            self.results.write_text("".join(comparisons(carry / "results.jsonl")))
        end_leftover(self.running)
        self.records = [json.loads(line) for line in self.results.read_text().splitlines()] if (
            self.results.exists()) else []
        self.publish()

    def left(self):
        """Seconds of this call."""
        return self.end - time.monotonic()

    def is_done(self, step):
        """Whether the last result of the step is final; one that was skipped is tried again, and a failed doctor."""
        last = next((r for r in reversed(self.records) if r["step"] == step.name), None)
        return last is not None and last["status"] in (("done",) if step.name == "doctor" else ("done", "failed"))

    def add(self, name, status, **more):
        """Notes the result of a step, here and in the output."""
        self.records.append({"step": name, "status": status, **more})
        with open(self.results, "a") as file:
            file.write(json.dumps(self.records[-1]) + "\n")
        self.publish()
        print(f"{name}: {status}, {more.get('seconds', 0):.0f} s {more.get('note', '')}".rstrip(), flush=True)

    def publish(self):
        """Copies the results to the output."""
        if self.results.exists():
            shutil.copyfile(self.results, self.output / "results.jsonl")

    # ---- what was brought along

    def unpack(self):
        """Unpacks the parts that are not unpacked yet; returns the manifest."""
        for name in ("packages", "features", "photos"):
            self._untar(self.carry / f"{name}.tar.xz", self.work / name)
        for name in ("carry.json", "config.yaml", "latents.xz"):
            if (self.carry / name).exists():
                shutil.copyfile(self.carry / name, self.work / name)
        if not (self.work / "carry.json").exists():
            raise SystemExit(f"error: {self.carry}: holds no carry.json; fill it with python -m benchmarks.gpu_carry")
        manifest = json.loads((self.work / "carry.json").read_text())
        (self.work / "run").mkdir(exist_ok=True)
        for name in ("autoencoder", "start"):
            target = self.work / "run" / f"{name}.safetensors"
            if manifest.get(name) and not target.exists():
                source = self.carry / manifest[name]
                shutil.copyfile(source if source.exists() else ROOT / manifest[name], target)
        pieces = sorted(self.carry.glob("home.tar.*"))
        if pieces and not jittor_home().exists():
            joined = self.work / "home.tar"
            with open(joined, "wb") as file:
                for piece in pieces:
                    file.write(piece.read_bytes())
            self._untar(joined, jittor_home())
        return manifest

    def _untar(self, archive, target):
        """Unpacks an archive into a new folder, whole or not at all; one that is damaged becomes a result."""
        if target.exists() or not archive.exists():
            return
        draft = target.with_name(f".{target.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            with tarfile.open(archive) as file:
                file.extractall(draft, filter="data")
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
            self.add("unpack", "failed", note=f"{archive.name}: {error}")
        else:
            os.replace(draft, target)

    # ---- the steps

    def run(self, step):
        """Runs a step and notes its result; returns False where the call has no time for it."""
        if step.without:
            self.add(step.name, "skipped", note=step.without)
            return True
        seconds = min(step.limit, self.left() - SPARE)
        if seconds < min(step.least, step.limit):
            print(f"{step.name}: {max(0, seconds):.0f} s are left, expected {step.least}; the next call goes on")
            return False
        training = max(seconds - SPARE, seconds / 2)  # it saves after that
        command = [str(part).replace("{minutes}", f"{training / 60:.3f}") for part in step.command]
        start, logs = time.monotonic(), self.output / "logs.txt"
        if step.report:  # of an earlier try
            step.report.unlink(missing_ok=True)
        with open(logs, "ab") as log:
            log.write(f"\n==== {step.name}: {' '.join(command)}\n".encode())
            log.flush()
            first = log.tell()
            code = finished(command, seconds, log, {**os.environ, **self.environment(), **step.env}, self.running)
        tail = logs.read_bytes()[first:].decode(errors="replace").replace("\r", "\n").splitlines()[-TAIL:]
        shorten(logs)
        report = step.report and step.report.exists() and json.loads(step.report.read_text())
        status, note = outcome(step, code, seconds, tail)
        before = [r for r in self.records if (r["step"], r["status"]) == (step.name, "cut")]
        if status == "cut" and before and not step.result:
            status, note = "failed", "cut off by the end of two calls"
        self.add(step.name, status, seconds=round(time.monotonic() - start, 1), code=code, note=note, tail=tail,
                 **({"report": report} if report else {}))
        return self.left() > SPARE

    def environment(self):
        """The variables that every step gets."""
        path = [self.work / "packages", self.work / "features", ROOT, os.environ.get("PYTHONPATH")]
        values = {"PYTHONPATH": os.pathsep.join(str(p) for p in path if p), "PYTHONUNBUFFERED": "1"}
        here = importlib.util.find_spec("jittor_offline") or (self.work / "packages" / "jittor_offline").exists()
        if not here and "use_mkl" not in os.environ:
            values["use_mkl"] = "0"  # else Jittor wants to download oneDNN
        return values

    # ---- what goes home

    def pack_home(self, most):
        """Packs Jittor's compiled core and kernels, unless they are larger than `most` bytes or it takes too long."""
        home, archive, start = jittor_home(), self.work / "home-out.tar", time.monotonic()
        seconds = min(PACKING, self.left() - SPARE)
        if not most or not home.is_dir() or seconds < SPARE:
            return
        compress = "xz -T0 -2" if shutil.which("xz") else "gzip"
        left_out = " ".join(f"--exclude='*{suffix}'" for suffix in NOT_NEEDED)
        with open(self.output / "logs.txt", "ab") as log:
            code = finished(["bash", "-o", "pipefail", "-c", f'tar -C "$0" {left_out} -c . | {compress} > "$1"', home,
                             archive], seconds, log, os.environ)
        size = archive.stat().st_size
        note = f"{size / 1e6:.1f} MB"
        if code is None:
            note += f" after {seconds:.0f} s, too slow; it stays here"
        elif size > most:
            note += f", more than --home-mb {most / 1e6:g}; it stays here"
        elif not code:
            split(archive, self.output / "home.tar")
        self.add("home", "failed" if code else "done", seconds=round(time.monotonic() - start, 1), note=note)

    def pack_run(self):
        """Packs the newest weights in half precision, the tables and the sample grids."""
        run, home = self.work / "run", self.work / "run-out"
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir()
        for kind in ("unet", "decoder"):
            paths = [path for path in run.glob(f"{kind}*.safetensors") if "-state-" not in path.name]
            if paths:
                newest = max(paths, key=lambda path: path.stat().st_mtime)
                with open(self.output / "logs.txt", "ab") as log:
                    code = finished([sys.executable, "-c", HALF, newest, home / f"{kind}.safetensors"], 60, log,
                                    {**os.environ, **self.environment(), "JIIDM_DEVICE": self.device})
                if code != 0:
                    self.add("weights", "failed", note=f"{newest.name} did not become half precision; see logs.txt")
                    shutil.copyfile(newest, home / newest.name)
        for path in (*run.glob("*.csv"), *run.glob("*-[0-9]*.jpg")):
            shutil.copyfile(path, home / path.name)
        if any(home.iterdir()):
            with tarfile.open(self.work / "run-out.tar", "w") as file:
                file.add(home, ".")
            split(self.work / "run-out.tar", self.output / "run.tar")


def comparisons(path):
    """The lines of results.jsonl that hold on another machine: no doctor, no training, nothing that was cut off."""
    for line in path.read_text().splitlines(keepends=True):
        record = json.loads(line)
        if record["step"] in COMPARISONS and record["status"] in ("done", "failed"):
            yield line


def started(process):
    """When a process has started, in the kernel's ticks; None where there is none."""
    try:
        return Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def end_leftover(running):
    """Ends the step that a call which was killed has left behind: it would hold the GPU and its run folder."""
    if running.exists():
        process, start = running.read_text().split()
        if started(process) == start:
            os.killpg(int(process), signal.SIGKILL)
        running.unlink()


def machine():
    """What matters of this machine, in a line."""
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    return f"{os.uname().nodename}, {os.uname().release}, {os.cpu_count()} cores, {int(memory) >> 20} GiB"


def jittor_home():
    """The folder in which Jittor keeps what it compiles."""
    return Path(os.environ.get("JITTOR_HOME") or Path.home()) / ".cache" / "jittor"


def split(path, target, most=15_500_000):
    """Writes a file in pieces TARGET.0, TARGET.1 ...; returns how many."""
    for old in target.parent.glob(f"{target.name}.*"):
        old.unlink()
    count = 0
    with open(path, "rb") as file:
        while piece := file.read(most):
            target.with_name(f"{target.name}.{count}").write_bytes(piece)
            count += 1
    return count


def shorten(path):
    """Cuts the middle out of a log that has become too large to go home."""
    text = path.read_bytes()
    if len(text) > LOG_BYTES:
        path.write_bytes(text[: LOG_BYTES // 8] + b"\n...\n" + text[-LOG_BYTES // 2 :])


def finished(command, seconds, log, env, running=None):
    """Runs a command; returns its exit code, None where it had to be ended after `seconds`. `running` is a file for
    the number of its process group, there as long as it runs."""
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=log,
                               stderr=log, start_new_session=True)
    try:
        if running:
            running.write_text(f"{process.pid} {started(str(process.pid))}")
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when this program is to end: nothing of the step stays
        if process.poll() is None:
            process.terminate()  # it alone: a training whose compilers are ended fails instead of saving
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if running:
            running.unlink(missing_ok=True)


def outcome(step, code, seconds, tail):
    """Status and note of a step that has ended."""
    if code is None:
        over = seconds >= step.limit and not step.result
        return ("failed", f"ended after its {step.limit} s") if over else ("cut", "the call was over")
    if code:
        return "failed", next((line for line in reversed(tail) if line.strip()), f"exit code {code}")[:200]
    if step.result and not step.result.exists():
        return "part", "the next call goes on"
    return "done", ""


def missing(package):
    """Why a step cannot be done here; None where the package is installed."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed here: pip install {package}"


def steps_of(session, manifest, tiny, train_minutes):
    """The steps, in their order."""
    python, work, device = sys.executable, session.work, session.device
    exact = {"NVIDIA_TF32_OVERRIDE": "0"}

    def part(name, limit, env=None, without=None):
        command = [python, "-m", "benchmarks.gpu", "--part", name, "--output", work / "reports", *["--tiny"] * tiny]
        return Step(name, command, limit, 60, env or {}, work / "reports" / f"{name}.json", without=without)

    steps = [
        Step("doctor", [python, "tools/doctor.py"], 540, env={"JIIDM_DEVICE": device}),
        part("parity", 420, exact),
        part("bf16", 300),
        part("torch", 240, without=missing("torch")),
        part("kernels", 300),
        part("fp32", 240),
        Step("reference", [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_networks.py",
                           "tests/test_diffusion.py"], 300, 60,
             {**exact, "JIIDM_DEVICE": device, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
             without=missing("pytest") or missing("hypothesis")),
    ]
    start = work / "run" / "start.safetensors"
    for stage, data in (("unet", work / "latents.xz"), ("decoder", work / "photos")):
        if stage not in manifest:
            continue
        command = [python, "tools/train.py", stage, "--config", work / "config.yaml", "--data", data, "--run",
                   work / "run", "--resume", "--device", device, "--minutes", "{minutes}",
                   *(["--start-from", start] if stage == "unet" and start.exists() else [])]
        steps.append(Step(stage, command, int(60 * train_minutes), 120, result=work / "run" / manifest[stage],
                          without=None if data.exists() else f"{data.name} was not brought along"))
    return steps


def main():
    """Runs the steps that are not done; returns whether one of them has failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("carry", type=Path, help="the folder that was brought along")
    parser.add_argument("--output", type=Path, required=True, help="the folder whose files go home")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (default %(default)s)")
    parser.add_argument("--train-minutes", type=float, default=60.0,
                        help="the most of one training in a call (default %(default)s)")
    parser.add_argument("--patience", type=float, default=1.0, metavar="FACTOR",
                        help="multiply the steps' time limits, which are for 16 cores that compile")
    parser.add_argument("--work", type=Path, default=Path.home() / "jiidm-gpu", help="folder on this machine")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    parser.add_argument("--again", nargs="+", default=[], metavar="STEP", help="these steps even if they are done")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this program")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in the comparisons, to try this program")
    parser.add_argument("--home-mb", type=float, default=30,
                        help="the most that home.tar may have, 0: it stays here (default %(default)s)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`: no step outlives this program
    session = Session(args.carry, args.work.resolve(), args.output, args.minutes, args.device)
    manifest = session.unpack()
    steps = steps_of(session, manifest, args.tiny, args.train_minutes)
    for step in steps:
        step.limit = int(step.limit * (1 if step.result else args.patience))
    names = [step.name for step in steps]
    unknown = [name for name in (*(args.only or ()), *args.again) if name not in names]
    if unknown:
        raise SystemExit(f"error: step {unknown[0]}: expected one of {', '.join(names)}")
    with open(session.output / "logs.txt", "a") as log:
        log.write(f"{machine()}\n")
    for step in steps:
        if args.only and step.name not in args.only or session.is_done(step) and step.name not in args.again:
            continue
        goes_on = session.run(step)
        if step.result:
            session.pack_run()
        if step.name == "doctor" and goes_on and not any(
                line.startswith("device") for line in session.records[-1]["tail"]):
            print("Jittor cannot be imported: no further step is tried; see logs.txt")
            break
        if not goes_on:
            break
        if step.name in ("parity", "bf16") and session.left() > 3 * SPARE:
            session.pack_home(1e6 * args.home_mb)
    last = {record["step"]: record["status"] for record in session.records}
    print(", ".join(f"{name} {last.get(name, 'not begun')}" for name in names))
    return any(last.get(name) == "failed" for name in names)


if __name__ == "__main__":
    sys.exit(main())
