"""The command `jiidm package`."""
from jiidm.commands.main import run

run("package")
