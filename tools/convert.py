"""The command `jiidm convert`, from a checkout."""
from checkout import run

run("convert")
