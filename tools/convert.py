"""The command `jiidm convert`."""
from jiidm.commands.main import run

run("convert")
