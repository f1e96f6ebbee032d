"""The command `jiidm evaluate`, from a checkout."""
from checkout import run

run("evaluate")
