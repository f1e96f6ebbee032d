"""What a built wheel holds, beside the modules."""
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from helpers import ROOT

_GALLERY = """
import json
from jiidm.painter.examples import example_gallery
gallery = example_gallery()
print(json.dumps([gallery.describe(), list(gallery.style_maps), str(next(iter(gallery.styles.values())))]))
"""


@pytest.mark.slow
def test_an_installed_package_has_the_gallery_with_its_licences(tmp_path):
    pytest.importorskip("starlette", reason="the painter's extra is not installed")
    tree = tmp_path / "tree"  # pip builds in place, and what lies there from before would go into the wheel
    for folder in ("jiidm", "configs", "examples"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, tree],
                           capture_output=True, text=True)
    if built.returncode:
        pytest.skip("pip cannot fetch what builds a wheel")
    with zipfile.ZipFile(next(tmp_path.glob("jiidm-*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    shown = subprocess.run([sys.executable, "-c", _GALLERY], cwd=tmp_path, env=environment, capture_output=True,
                           text=True)
    gallery, maps, path = json.loads(shown.stdout)
    stems = sorted(file.stem for file in (ROOT / "examples" / "train" / "imgs").iterdir())
    assert [style["name"] for style in gallery["styles"]] == maps == stems and gallery["examples"]
    assert path.startswith(str(tmp_path))
    for file in ("README.md", "licences/GPL-2.txt", "licences/LGPL-3.txt"):
        assert (tmp_path / "installed" / "jiidm" / "examples" / file).is_file()
