"""The command `jiidm merge`, from a checkout."""
from checkout import run

run("merge")
