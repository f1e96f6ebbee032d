"""The command `jiidm train`, from a checkout."""
from checkout import run

run("train")
