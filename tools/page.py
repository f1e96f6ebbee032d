"""The command `jiidm page`, from a checkout."""
from checkout import run

run("page")
