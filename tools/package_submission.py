"""The command `jiidm package`, from a checkout."""
from checkout import run

run("package")
