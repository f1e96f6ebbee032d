"""The command `jiidm merge`."""
from jiidm.commands.main import run

run("merge")
