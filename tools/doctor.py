"""The command `jiidm doctor`."""
from jiidm.commands.main import run

run("doctor")
