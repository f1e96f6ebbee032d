"""The command `jiidm data`, from a checkout."""
from checkout import run

run("data")
