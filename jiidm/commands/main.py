"""`jiidm COMMAND ...`: finds the command and runs it."""
import importlib
import sys

from jiidm.commands.entry import run_processes, run_tool

COMMANDS = {
    "infer": "the pictures of a test folder",
    "paint": "draw in the browser, see the landscape",
    "train": "train the networks",
    "evaluate": "measure a folder of pictures",
    "convert": "convert weights of other programs",
    "merge": "average checkpoints into one",
    "data": "make and check data folders",
    "package": "pack the pictures into the contest's zip",
    "plot": "draw the curves of a run",
    "doctor": "check this machine",
}
_DISTRIBUTED = ("infer", "train")


def run(command):
    """Runs a command with the arguments of the command line and ends the process with its exit code."""
    module = importlib.import_module(f"jiidm.commands.{command}")
    (run_processes if command in _DISTRIBUTED else run_tool)(module.main)


def main():
    """The entry point `jiidm`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        sys.argv[:2] = [f"jiidm {name}"]
        run(name)
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {command:{width}}  {text}" for command, text in COMMANDS.items())
    print(f"usage: jiidm COMMAND ... (jiidm COMMAND --help says more)\n\n{lines}")
    sys.exit(0 if name in ("-h", "--help") else 2)
