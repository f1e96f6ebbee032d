"""`jiidm COMMAND ...`: finds the command and runs it. `doctor` must start without numpy and Jittor: import neither."""
import difflib
import importlib
import sys

from jiidm import __version__
from jiidm.commands.entry import run_processes, run_tool
from jiidm.system.errors import SetupError

GROUPS = {
    "Make pictures": {
        "draw": "one picture from a label map and a style photo",
        "paint": "draw in the browser, see the landscape",
        "page": "write the painter as a static page, without a server",
        "segment": "label maps from photos",
        "infer": "all pictures of a test folder",
        "package": "pack the pictures of a test folder into the contest's zip",
    },
    "Train": {
        "data": "make and check data folders",
        "train": "train the networks, stage by stage",
        "plot": "draw the curves of a run",
        "merge": "average checkpoints into one",
        "convert": "convert weights of other programs",
        "export": "write the networks as ONNX files, which run without Jittor",
    },
    "Check": {
        "evaluate": "measure a folder of pictures",
        "doctor": "check this machine",
    },
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}
_DISTRIBUTED = ("infer", "train")  # may run under mpirun


def run(command: str) -> None:
    """Runs a command with the arguments of the command line and ends the process with its exit code."""
    def call():
        try:
            module = importlib.import_module(f"jiidm.commands.{command}")
        except ModuleNotFoundError as error:
            if (error.name or "jiidm").partition(".")[0] == "jiidm":
                raise
            raise SetupError(f"the package {error.name} is not installed; install jiidm with its dependencies: "
                             f"pip install .") from error
        return module.main()

    (run_processes if command in _DISTRIBUTED else run_tool)(call)


def help_text() -> str:
    """Returns what `jiidm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"jiidm {__version__}: landscape pictures from label maps and style photos", "",
             "usage: jiidm COMMAND ...     jiidm COMMAND --help says more     jiidm --version"]
    for title, commands in GROUPS.items():
        lines += ["", title, *(f"  {name:{width}}  {text}" for name, text in commands.items())]
    return "\n".join(lines)


def main() -> None:
    """The entry point `jiidm`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        sys.argv[:2] = [f"jiidm {name}"]
        run(name)
    elif name in ("", "-h", "--help"):
        print(help_text())
        sys.exit(0 if name else 2)
    elif name in ("-V", "--version"):
        print(f"jiidm {__version__}")
        sys.exit(0)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(COMMANDS)}"
        print(f"error: jiidm has no command {name}; {advice}", file=sys.stderr)
        sys.exit(2)
