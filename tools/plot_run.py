"""The command `jiidm plot`, from a checkout."""
from checkout import run

run("plot")
