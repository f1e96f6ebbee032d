"""The command `jiidm plot`."""
from jiidm.commands.main import run

run("plot")
