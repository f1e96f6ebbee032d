"""Kills a training at random moments, again and again, and counts what is lost: unreadable states, steps beyond the
last saved one, weights other than those of a run that was left alone. All must be 0; exit code 1 otherwise. Every step
is saved, so that moments fall into a write, too."""
import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jiidm.checkpoint import load_tensors
from jiidm.system.errors import InputError
from jiidm.training.state import read_state, saved_states, state_path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
image: {{width: 64, height: 48}}
autoencoder: {{ch: 16, num_res_blocks: 1, n_embed: 64, norm_groups: 4}}
unet: {{model_channels: 16, channel_mult: [1, 2], num_res_blocks: 1, attention_resolutions: [2], head_channels: 16,
       spade_channels: 8, norm_groups: 4}}
train_autoencoder: {{steps: 2, batch: 2, crop: 32, discriminator_channels: 8, discriminator_layers: 1}}
train_unet: {{steps: {steps}, batch: 3, keep_at: [{steps}], save_every: 1, sheet_every: 0}}
inference:
  rounds: [{{guidance: 2.0, respacing: ddim20, start: 3}}]
"""


def tool(name, *arguments, **options):
    """A started tools/NAME.py."""
    return subprocess.Popen([sys.executable, ROOT / "tools" / f"{name}.py", *map(str, arguments)],
                            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, text=True, **options)


def done(process):
    """Its messages; ends this program where it has failed."""
    _, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, process.args))}: {errors}")
    return errors


def unreadable(run):
    """How many saved states cannot be read."""
    count = 0
    for _, path in saved_states(run, "unet"):
        try:
            read_state(path)
        except InputError as error:
            print(error)
            count += 1
    return count


def killed(arguments, run, longest, dice):
    """Starts the training, kills it at a random moment after it has taken the run folder; returns its messages."""
    process = tool("train", "unet", *arguments, "--run", run, *(["--resume"] if saved_states(run, "unet") else []))
    owner = f'"process": {process.pid},'
    while process.poll() is None and owner not in (run / ".claim").read_text():
        time.sleep(0.005)
    time.sleep(dice.uniform(0, longest))
    process.kill()
    return process.communicate()[1]


def main():
    """Trains twice, once left alone and once killed; prints what was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--longest", type=float, default=3.0, help="seconds from the start of a training to its end")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    steps, dice, start = 40 * args.kills, random.Random(args.seed), time.monotonic()
    with tempfile.TemporaryDirectory() as top:
        top = Path(top)
        (top / "tiny.yaml").write_text(CONFIG.format(steps=steps))
        done(tool("prepare_data", "synthetic", top / "data", "--count", 6, "--width", 64, "--height", 48))
        arguments = "--config", top / "tiny.yaml", "--data", top / "data"
        alone, victim = top / "alone", top / "victim"
        for run in (alone, victim):
            for stage in ("autoencoder", "latents"):
                done(tool("train", stage, *arguments, "--run", run))
        done(tool("train", "unet", *arguments, "--run", alone))
        kills = broken = lost = half = 0
        while kills < args.kills and not state_path(victim, "unet", steps).exists():
            before = max((step for step, _ in saved_states(victim, "unet")), default=0)
            errors = killed(arguments, victim, args.longest, dice)
            kills += 1
            broken += unreadable(victim)
            half += len(list(victim.glob(".*.tmp*")))
            resumed = re.search(r"goes on from step (\d+)", errors)
            lost += max(0, before - int(resumed[1])) if resumed else 0
        reached = max((step for step, _ in saved_states(victim, "unet")), default=0)
        errors = done(tool("train", "unet", *arguments, "--run", victim, "--resume"))
        resumed = re.search(r"goes on from step (\d+)", errors)
        lost += max(0, reached - int(resumed[1])) if resumed else reached
        one, other = (load_tensors(state_path(run, "unet", steps))[0] for run in (alone, victim))
        different = sum((value != other[name]).any() for name, value in one.items())
    print(f"{kills} kills over {reached} of {steps} steps, {half} of them in the middle of a write; unreadable states: "
          f"{broken}; steps lost beyond the last save: {lost}; tensors that differ at the end: {different} of "
          f"{len(one)}; {time.monotonic() - start:.0f} s")
    return int(bool(broken or lost or different))


if __name__ == "__main__":
    sys.exit(main())
