"""The command `jiidm infer`."""
from jiidm.commands.main import run

run("infer")
