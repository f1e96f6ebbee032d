"""Settings of the documentation: `python -m sphinx -W -b html docs docs/_build/html`.

Nothing is downloaded, neither by the build nor by the pages. Jittor is not needed: the one module that imports it is
replaced by a stand-in.
"""
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "_ext")]


def _version():
    for node in ast.parse((ROOT / "jiidm" / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__version__":
            return ast.literal_eval(node.value)
    raise RuntimeError("jiidm/__init__.py: no __version__")


project, author, version = "jiidm", "the jiidm authors", _version()
copyright = "the jiidm authors, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "without_jittor",
              "math_as_mathml", "class_table"]
exclude_patterns = ["_build"]
default_role = "code"
nitpicky = False

myst_enable_extensions = ["deflist", "dollarmath", "html_image"]
myst_heading_anchors = 3

# a module shows what it defines, not what it takes from others
autodoc_default_options = {"members": True, "member-order": "bysource", "ignore-module-all": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"jiidm {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False
