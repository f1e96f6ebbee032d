"""The command `jiidm infer`, from a checkout."""
from checkout import run

run("infer")
