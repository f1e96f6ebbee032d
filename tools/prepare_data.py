"""The command `jiidm data`."""
from jiidm.commands.main import run

run("data")
