"""The command `jiidm evaluate`."""
from jiidm.commands.main import run

run("evaluate")
