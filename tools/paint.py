"""The command `jiidm paint`, from a checkout."""
from checkout import run

run("paint")
