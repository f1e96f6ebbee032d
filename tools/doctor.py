"""The command `jiidm doctor`, from a checkout."""
from checkout import run

run("doctor")
