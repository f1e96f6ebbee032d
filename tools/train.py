"""The command `jiidm train`."""
from jiidm.commands.main import run

run("train")
