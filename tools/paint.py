"""The command `jiidm paint`."""
from jiidm.commands.main import run

run("paint")
