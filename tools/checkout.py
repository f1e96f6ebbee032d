"""Lets the tools run from a checkout that is not installed: Python puts only tools/ on its path."""
import sys
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

from jiidm.commands.main import run  # noqa: E402, F401
